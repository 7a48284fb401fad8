"""The attention layers of a model as one list: their masks, their kernels, their reconstruction losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitcod_cli.errors import VitcodError
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer, grid_size, num_tokens
from vitcod_cli.model.kernels.base import Kernel
from vitcod_cli.model.passes import position_biases
from vitcod_cli.model.read_rows import rows_read
from vitcod_cli.model.settings import AttentionKernel


def attentions(model: nn.Module) -> list[SparseLowRankAttention]:
    """The attention layers of ``model``, first to last: the L of maps and masks."""
    return [module for module in model.modules() if isinstance(module, SparseLowRankAttention)]


def attention_shape(model: Transformer) -> tuple[int, int, int, int]:
    """(L, H, N, N) of the model's maps and masks."""
    layers = attentions(model)
    tokens = num_tokens(model)
    return len(layers), layers[0].num_heads, tokens, tokens


def set_keep_mask(model: Transformer, keep: Tensor | Sequence[Tensor], subject: str = "--mask") -> None:
    """Fix the attention pattern of every layer; on the model's device, they hold ``keep`` itself.

    Args:
        keep: bool [L, H, N, N], or [H, N, N] for each layer; True = this query may look at this key.
        subject: what messages call the mask.

    Raises:
        VitcodError: if the shape is another model's, or a query may look at no key at all.
    """
    expected = attention_shape(model)
    found = (len(keep), *(keep[0].shape if len(keep) else ()))
    if found != expected:
        raise VitcodError(
            f"{subject} has the shape {_layers(found)} but {model_config(model).model} needs "
            f"{_layers(expected)}; make the mask from an attention map of this model (vitcod dump-attn)."
        )
    empty = torch.stack([~layer_keep.any(dim=-1) for layer_keep in keep]).nonzero()
    if len(empty):
        layer, head, row = empty[0].tolist()
        raise VitcodError(
            f"{subject} lets {len(empty)} queries look at no key at all (the first: block {layer}, head {head}, "
            f"row {row}), which has no softmax; regenerate it, or check its polarity (a published .npy says "
            "True = pruned, a vitcod mask says True = kept)."
        )
    for attention, layer_keep in zip(attentions(model), keep, strict=True):
        attention.set_keep(layer_keep)


def clear_keep_mask(model: nn.Module) -> None:
    """Let every query look at every key again."""
    for attention in attentions(model):
        attention.set_keep(None)


def has_mask(model: nn.Module) -> bool:
    """Whether the attention pattern of any layer is fixed."""
    return any(attention.keep is not None for attention in attentions(model))


def mask_sparsity(model: nn.Module) -> float:
    """Share of the entries that the masks of ``model`` prune; 0 for a dense model."""
    masks = [attention.keep for attention in attentions(model) if attention.keep is not None]
    kept = sum(int(mask.count_nonzero()) for mask in masks)
    return 1 - kept / sum(mask.numel() for mask in masks) if masks else 0.0


def keep_mask(model: nn.Module) -> Tensor | None:
    """The mask of the whole model, bool [L, H, N, N] on the CPU, or None for a dense model."""
    masks = [attention.keep.cpu() for attention in attentions(model) if attention.keep is not None]
    return torch.stack(masks) if masks else None


def check_masked(attention: AttentionKernel, models: Sequence[nn.Module]) -> None:
    """Raise a VitcodError where ``--attention`` asks for what masks make possible, and no model has one."""
    if attention in ("flex", "measured") and not any(map(has_mask, models)):
        raise VitcodError(
            f"--attention {attention} leaves out what a mask prunes, and there is no mask; name one (--mask), or "
            "a checkpoint that holds its own."
        )


def fold_auto_encoders(model: Transformer) -> None:
    """Fold every auto-encoder into its qkv weights, in place, for inference: same function, no cost.

    What can't be folded (behind a norm on Q and K) stays. The folded model is no longer the one that its
    ``config`` names: it is not for saving.
    """
    for attention in attentions(model):
        attention.fold()


def prepare_inference(
    model: Transformer, dtype: torch.dtype = torch.float32, attention: AttentionKernel = "auto"
) -> None:
    """Make ``model`` as fast at inference as it can be, in place, on the device that it is on.

    Auto-encoders are folded (:func:`fold_auto_encoders`), masks turned into what attention adds, and where a
    mask lets enough be skipped on a CPU, the attention that skips it is planned
    (:mod:`~vitcod_cli.model.kernels.planned`). Same function to float tolerance.

    Args:
        dtype: of the autocast that all forwards will run under; float32: without one. Weights that autocast
            would round to it at every forward are rounded once.
        attention: how masked layers compute (:mod:`~vitcod_cli.model.kernels.choice`), ``--attention``.
    """
    unplanned = None if rows_read(model) is None else model.blocks[-1].attn
    device = attentions(model)[0].device.type
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        biases = position_biases(model)  # which a small network may compute
    for layer, bias in zip(attentions(model), biases, strict=True):
        plan = layer is not unplanned
        layer.prepare_inference(grid_size(model), dtype, bias=bias, plan=plan, kernel=attention)
    if dtype != torch.float32:
        _round_weights(model, dtype)


def _round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace weights by new ones of ``dtype`` where autocast casts them as they are, and nowhere else."""
    auto_encoders = {
        id(part) for layer in attentions(model) for letter in "qk" for part in layer.auto_encoder(letter) or ()
    }
    for module in model.modules():
        # Exactly these: a subclass may compute with its weight first, as a convolution that standardises it.
        if type(module) in (nn.Linear, nn.Conv2d) and id(module) not in auto_encoders:
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


@contextmanager
def using(model: nn.Module, kernel_for: Callable[[int], Kernel]) -> Iterator[None]:
    """Compute the attention of ``model`` with other kernels for the time of the block.

    Args:
        kernel_for: gives the kernel of each layer, by its index in :func:`attentions`.
    """
    layers = attentions(model)
    before = [layer.kernel for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer.kernel = kernel_for(index)
        yield
    finally:
        for layer, kernel in zip(layers, before, strict=True):
            layer.kernel = kernel


@contextmanager
def recording_reconstruction(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Let each forward of ``model`` leave its :func:`reconstruction_loss` behind; forget it at the end."""
    for layer in attentions(model):
        layer.record_reconstruction = enabled
    try:
        yield
    finally:
        for layer in attentions(model):
            layer.record_reconstruction = False
            layer.reconstruction_loss = None  # holds the step's graph, which can't be copied


def reconstruction_loss(model: nn.Module) -> Tensor | None:
    """Of the last forward, summed over blocks, Q and K (ViTCoD, section IV-B); None where none was recorded.

    Each is an unsquared L2 norm over the whole batch, so that their sum grows with the batch: that is what
    was published. A float32 scalar.
    """
    losses = [layer.reconstruction_loss for layer in attentions(model)]
    recorded = [loss.float() for loss in losses if loss is not None]
    return torch.stack(recorded).sum() if recorded else None


def _layers(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
