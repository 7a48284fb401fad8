"""From a checkpoint to a model, and back: nothing is loaded that doesn't fit, nothing fitting is left out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcod_cli.artifacts.architecture import architecture_in_words, class_count_of, svd_type_of
from vitcod_cli.artifacts.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.artifacts.mask import Mask, read_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.build import build_model, check_architecture, default_img_size, model_config
from vitcod_cli.model.families import Transformer, filter_checkpoint
from vitcod_cli.model.hub import pretrained_model
from vitcod_cli.model.layers import attention_shape, clear_keep_mask, has_mask, set_keep_mask
from vitcod_cli.model.mask_origin import check_origin
from vitcod_cli.model.resolve import resolve_config
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET, Reporter

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_ADAPTED = ("head.", "head_dist.", "pos_embed", "patch_embed.")
"""Names of what is fitted to another class count, image or patch size."""

_MOST_DIMENSIONS = 8
"""No weight has more, and torch can't compute with more than 64."""

HUB = "timm"
"""The source that stands for the hub's pretrained weights."""


def load_model(
    settings: ModelSettings,
    source: str | None,
    *,
    flag: str,
    drop_path: float = 0.0,
    reporter: Reporter,
    mask: str | None = None,
    like: ModelConfig | None = None,
) -> Transformer:
    """Build the model that ``settings`` and the checkpoint at ``source`` describe, and load it.

    Args:
        settings: the user's; they go before the checkpoint's.
        source: path, ``https://`` address, ``timm`` (the hub's pretrained weights) or None (random weights).
        flag: the option that ``source`` came from, for messages.
        drop_path: stochastic depth rate, for training.
        reporter: told what was changed on the way in (head, position embeddings).
        mask: a mask file to apply on top (``--mask``).
        like: taken for the checkpoint's model when the checkpoint does not say which it holds.

    Raises:
        VitcodError: if the checkpoint can't be read or doesn't fit; the message lists what is amiss.
    """
    checkpoint = _read(settings, source, flag, reporter)
    model = build_model(resolve_config(settings, checkpoint, flag, like), drop_path=drop_path)
    if checkpoint is not None:
        load_weights(model, checkpoint, flag=flag, reporter=reporter)
        hint = checkpoint.info.get("args", {}).get("mask_path")
        if isinstance(hint, str) and hint and mask is None and not has_mask(model):
            reporter.info(f"{checkpoint.source} was trained under the mask {hint[:300]}; give it with --mask.")
    if mask is not None:
        apply_mask(model, mask, "--mask", reporter)
    return model


def apply_mask(
    model: Transformer, path: str | os.PathLike[str], flag: str = "--mask", reporter: Reporter = QUIET
) -> None:
    """Read a mask and fix it on ``model``.

    Raises:
        VitcodError: if it can't be read or is another model's.
    """
    put_mask(model, read_mask(path, flag), f"{flag} {path}", reporter)


def put_mask(model: Transformer, mask: Mask, subject: str, reporter: Reporter) -> None:
    """Fix a mask on ``model``.

    Args:
        subject: what messages call the mask.

    Raises:
        VitcodError: if it is another model's.
    """
    set_keep_mask(model, torch.from_numpy(mask.keep), subject)
    try:
        check_origin(mask.info, model, subject, reporter)
    except VitcodError:
        clear_keep_mask(model)
        raise


def save_model(path: str | os.PathLike[str], model: nn.Module, info: Mapping[str, Any]) -> None:
    """Write ``model`` (mask included) and its config as a checkpoint of ours, atomically.

    Raises:
        VitcodError: if its auto-encoders were folded for inference, or the file can't be written.
    """
    state_dict, config = model.state_dict(), model_config(model)
    if svd_type_of(state_dict) != config.svd_type:
        raise VitcodError(
            "The model was prepared for inference, its auto-encoders are folded; load it with inference=False to "
            "save it."
        )
    write_checkpoint(path, state_dict, config, info)


def _read(settings: ModelSettings, source: str | None, flag: str, reporter: Reporter) -> Checkpoint | None:
    if source is None:
        return None
    if source != HUB:
        return read_checkpoint(source, flag, reporter, settings.use_ema)
    if settings.model is None:
        raise VitcodError(f"{flag} {HUB} means the hub's weights of a model; name it with --model.")
    return _pretrained(settings, flag)


def _pretrained(settings: ModelSettings, flag: str) -> Checkpoint:
    """The hub's weights of ``--model`` as timm loads them, at timm's own image size and class count."""
    assert settings.model is not None
    kwargs = {key: value for key, value in settings.kwargs().items() if key not in ("img_size", "num_classes")}
    size = default_img_size(settings.model)
    config = ModelConfig(model=settings.model, num_classes=1000, img_size=size, model_kwargs=kwargs)
    check_architecture(config)
    model = pretrained_model(settings.model, f"{flag} {HUB}", **kwargs)
    state_dict = model.state_dict()
    config = config.changed(num_classes=class_count_of(state_dict))
    return Checkpoint(state_dict, config, "timm", HUB)


# -- its tensors ------------------------------------------------------------------------------


def load_weights(model: Transformer, checkpoint: Checkpoint, *, flag: str, reporter: Reporter) -> None:
    """Load all of ``checkpoint`` into ``model``, resampled and with a new head where sizes differ.

    Raises:
        VitcodError: if it doesn't fit, or holds values that are not finite; the model is as it was.
    """
    where = f"{flag} {checkpoint.source}"
    _check_own_shapes(checkpoint, where)
    _check_dtypes(model, checkpoint.state_dict, where)
    if deep := [name for name, value in checkpoint.state_dict.items() if value.ndim > _MOST_DIMENSIONS]:
        raise VitcodError(f"{where} has {_some(deep)} of more than {_MOST_DIMENSIONS} dimensions; get it again.")
    state_dict = {k: v.float() if v.dtype in _FLOATS else v for k, v in checkpoint.state_dict.items()}
    broken = [k for k, v in state_dict.items() if v.dtype == torch.float32 and not torch.isfinite(v).all()]
    if broken:
        raise VitcodError(
            f"{where} has values that are not finite in {_some(broken)}; take an earlier checkpoint."
        )
    keep = _pop_keep(model, state_dict, where)
    _renew_heads(model, state_dict, where, reporter)
    state_dict = _resampled(model, state_dict, where, reporter)
    _check_fit(model, state_dict, where)
    _check_dtypes(model, state_dict, where)  # of those that have other names in the file
    model.load_state_dict(state_dict)
    if keep is not None:
        set_keep_mask(model, keep)


def _check_own_shapes(checkpoint: Checkpoint, where: str) -> None:
    """Refuse a file of ours whose heads, patches or positions are not of the model that it names.

    In other files they mean another class count or image size; they are made anew or resampled.
    """
    if checkpoint.layout != "vitcod" or checkpoint.config is None:
        return
    with torch.device("meta"):
        named = build_model(checkpoint.config).state_dict()
    names = [name for name in checkpoint.state_dict if name in named and name.startswith(_ADAPTED)]
    wrong = [name for name in names if checkpoint.state_dict[name].shape != named[name].shape]
    if wrong:
        raise VitcodError(
            f"{where} names a model whose {wrong[0]} is {list(named[wrong[0]].shape)}, and holds one of "
            f"{list(checkpoint.state_dict[wrong[0]].shape)}; make it again."
        )


def _check_dtypes(model: Transformer, state_dict: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights in integers or 8 bits: they are quantised, and mean nothing without what belongs to them."""
    expected = model.state_dict()
    names = [
        name
        for name, value in state_dict.items()
        if value.dtype not in _FLOATS and name in expected and expected[name].is_floating_point()
    ]
    if names:
        kind = str(state_dict[names[0]].dtype).removeprefix("torch.")
        raise VitcodError(
            f"{where} has {_some(names)} in {kind}; weights are read in float32, float16, bfloat16 or "
            "float64 only: give the checkpoint from before it was quantised or cast."
        )


def _pop_keep(model: Transformer, state_dict: dict[str, Tensor], where: str) -> list[Tensor] | None:
    """Take the masks out of ``state_dict``: bool [H, N, N] of each layer, or None for a dense checkpoint."""
    layers = [name for name, module in model.named_modules() if isinstance(module, SparseLowRankAttention)]
    keys = [f"{name}.keep" for name in layers if f"{name}.keep" in state_dict]
    if not keys:
        return None
    masks = [state_dict.pop(key) for key in keys]
    expected = attention_shape(model)[1:]
    wrong = next((m for m in masks if m.dtype != torch.bool or m.shape != expected), None)
    if wrong is not None and wrong.ndim and wrong.shape[-1:] != expected[-1:]:
        raise VitcodError(
            f"{where} holds a mask for {wrong.shape[-1]} tokens, and {model_config(model).model} of this size has "
            f"{expected[-1]}; a sparse model keeps its image size: make a mask for the other size from the "
            "model before the mask."
        )
    if wrong is not None or len(keys) != len(layers):
        raise VitcodError(
            f"{where} holds masks for {len(keys)} blocks, of {wrong.dtype if wrong is not None else 'bool'} "
            f"{list(masks[0].shape)}, but the model has {len(layers)} blocks and needs bool {list(expected)}; "
            "make the checkpoint again."
        )
    return masks


def _renew_heads(model: Transformer, state_dict: dict[str, Tensor], where: str, reporter: Reporter) -> None:
    """Where the class count differs, put the model's own fresh heads in place of the checkpoint's."""
    classes, in_file = model.num_classes, class_count_of(state_dict)
    if classes == in_file:
        return
    names = [name for name in ("head", "head_dist") if hasattr(model, name)]
    for key in [key for key in state_dict if key.rpartition(".")[0] in names]:
        del state_dict[key]
    state_dict.update({k: v for k, v in model.state_dict().items() if k.rpartition(".")[0] in names})
    if classes:
        reporter.info(
            f"{where} has {in_file} classes and the model {classes}: {' and '.join(names)} starts afresh."
        )
    else:
        reporter.info(f"{where} has {in_file} classes and the model none: its head is left out.")


def _resampled(
    model: Transformer, state_dict: dict[str, Tensor], where: str, reporter: Reporter
) -> dict[str, Tensor]:
    """Names and sizes as the model has them, through timm's own checkpoint filter."""
    try:
        filtered = filter_checkpoint(state_dict, model)
    # timm's filter takes names for granted, and what they stand for.
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AssertionError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:
        _check_fit(model, state_dict, where)  # most often the names say it better
        raise VitcodError(f"{_misfit(model, state_dict, where)}: {first_line(error)}.") from error
    changed = [
        f"{name} from {list(state_dict[name].shape)} to {list(filtered[name].shape)}"
        for name in ("pos_embed", "patch_embed.proj.weight")
        if name in state_dict and name in filtered and state_dict[name].shape != filtered[name].shape
    ]
    if changed:
        reporter.info(f"{where} is for another image or patch size: resampled {' and '.join(changed)}.")
    return filtered


def _check_fit(model: Transformer, state_dict: dict[str, Tensor], where: str) -> None:
    """Raise a VitcodError unless names and shapes are the model's, all of them."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    shapes = [
        f"{name} {list(value.shape)} instead of {list(expected[name].shape)}"
        for name, value in state_dict.items()
        if name in expected and value.shape != expected[name].shape
    ]
    amiss = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    parts = [f"{len(names)} {what} ({_some(names)})" for what, names in amiss if names]
    if parts:
        raise VitcodError(f"{_misfit(model, state_dict, where)}; tensors: {', '.join(parts)}.")


def _misfit(model: Transformer, state_dict: Mapping[str, Tensor], where: str) -> str:
    architecture = architecture_in_words(state_dict)
    return f"{where} doesn't fit --model {model_config(model).model} (the checkpoint has {architecture})"


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(name[:100] for name in names[:limit]) + (", ..." if len(names) > limit else "")
