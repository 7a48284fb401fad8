"""What is timed: a forward pass as ``eval`` runs it, a training step as fine-tuning runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim import Optimizer

from vitcod_cli.evaluation.programs import Program
from vitcod_cli.model.build import input_channels, model_config, plain_model
from vitcod_cli.model.families import Transformer, image_size
from vitcod_cli.model.layers import (
    attentions,
    clear_keep_mask,
    prepare_inference,
    reconstruction_loss,
    recording_reconstruction,
)
from vitcod_cli.model.settings import AttentionKernel
from vitcod_cli.runtime import Runtime

DROP_PATH = 0.1
"""Stochastic depth of a training step: the fine-tuning recipe's default."""

RECON_WEIGHT = 1e-4
"""Weight of the reconstruction loss: the fine-tuning recipe's default."""


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        run: one pass.
        forget: drops what passes leave behind: gradients and the optimizer's state.
    """

    run: Callable[[], None]
    forget: Callable[[], None]


@contextmanager
def forward_pass(model: Transformer | Program, batch_size: int, runtime: Runtime) -> Iterator[Work]:
    """Inference on one batch that is on the device already."""
    model.eval()
    images = runtime.to_device(synthetic_images(model, batch_size, runtime.device))
    call: Callable[[Tensor], Tensor] = model
    if isinstance(model, Program):  # how images are made for it is no matter of the program
        call, images = model.run, model.inputs_of(images)

    def run() -> None:
        with torch.inference_mode(), runtime.autocast():
            call(images)

    yield Work(run, lambda: None)


@contextmanager
def training_step(model: Transformer, optimizer: Optimizer, batch_size: int, runtime: Runtime) -> Iterator[Work]:
    """Forward, backward and update on one batch: cross-entropy and the reconstruction loss.

    It is a fine-tuning step without what is no matter of the model: data, augmentation, teacher and
    the moving average. The weights of ``model`` change; afterwards it is in eval mode.
    """
    images = runtime.to_device(synthetic_images(model, batch_size, runtime.device))
    targets = torch.randint(model.num_classes, (batch_size,), device=runtime.device)
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)

    def run() -> None:
        with runtime.autocast():
            loss = F.cross_entropy(model(images).float(), targets)
            recon = reconstruction_loss(model)
            loss = loss if recon is None else loss + RECON_WEIGHT * recon
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def forget() -> None:
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()

    model.train()
    try:
        with recording_reconstruction(model):
            yield Work(run, forget)
    finally:
        model.eval()
        forget()


def for_inference(
    model: Transformer, dtype: torch.dtype = torch.float32, attention: AttentionKernel = "auto"
) -> Transformer:
    """What ``eval`` runs: ``model`` itself, or a copy that is prepared and shares what weights it can.

    Args:
        dtype: what attention is computed in.
        attention: how masked layers compute.
    """
    if dtype == torch.float32 and all(
        layer.svd_type == "none" and layer.keep is None for layer in attentions(model)
    ):
        return model
    ready = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    prepare_inference(ready, dtype, attention)
    return ready


def make_optimizer(model: nn.Module) -> Optimizer:
    """The optimizer of fine-tuning, at the sparse step's learning rate."""
    return create_optimizer_v2(model, opt="adamw", lr=1e-5, weight_decay=1e-8, eps=1e-8, fused=True)


def synthetic_images(model: Transformer | Program, batch_size: int, device: torch.device) -> Tensor:
    """Normal noise float32 [B, C, H, W] of the size that ``model`` takes: like normalised images."""
    if isinstance(model, Program):
        return torch.randn(batch_size, *model.preprocess.input_size, device=device)
    return torch.randn(batch_size, input_channels(model), *image_size(model), device=device)


def without_mask(model: Transformer) -> Transformer:
    """A dense model with the very weights of ``model``, not a copy of them."""
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    clear_keep_mask(twin)
    return twin


def timm_twin(model: Transformer) -> Transformer:
    """timm's own model of the same shape and weights, without auto-encoders and mask."""
    twin = plain_model(model_config(model), drop_path=DROP_PATH)
    weights = model.state_dict()
    twin.load_state_dict({name: weights[name] for name in twin.state_dict()})
    return twin
