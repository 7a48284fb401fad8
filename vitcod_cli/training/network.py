"""The model as a training step sees it: with its reconstruction loss, on one process or many."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitcod_cli import distributed
from vitcod_cli.model.build import attentions
from vitcod_cli.runtime import Runtime
from vitcod_cli.training.losses import Outputs


class TrainingModel(nn.Module):
    """``model`` that also returns the summed reconstruction losses of its blocks (ViTCoD, section IV-B).

    Each is an unsquared L2 norm over this process's whole batch, so their sum grows with the
    batch: that is what was published.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Outputs, Tensor]:
        """Images [B, C, H, W] to (logits [B, classes] or those of two heads, a scalar)."""
        outputs: Outputs = self.model(images)
        losses = [layer.reconstruction_loss for layer in attentions(self.model)]
        found = [loss.float() for loss in losses if loss is not None]
        return outputs, torch.stack(found).sum() if found else images.new_zeros(())


@contextmanager
def recording_reconstruction(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Let the attention layers leave their reconstruction losses behind; forget them at the end."""
    for layer in attentions(model):
        layer.record_reconstruction = enabled
    try:
        yield
    finally:
        for layer in attentions(model):
            layer.record_reconstruction = False
            layer.reconstruction_loss = None  # holds the step's graph, which can't be copied


def over_processes(model: TrainingModel, runtime: Runtime) -> nn.Module:
    """``model`` with its gradients averaged over the processes of the run."""
    if not distributed.is_distributed():
        return model
    # DDP regroups the gradients after its first step, and a sum over more than two processes depends
    # on the grouping in its last bit: a resumed run would end with other bits. While it has to look
    # for unused parameters it doesn't regroup; it finds one, or else it would warn.
    exact = runtime.settings.deterministic
    if exact:
        model.register_parameter("unused", nn.Parameter(torch.zeros((), device=runtime.device)))
    with warnings.catch_warnings():
        # Newest torch has another name for broadcast_buffers, which older ones don't know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
            broadcast_buffers=False,  # the masks, which never change
            gradient_as_bucket_view=True,
            find_unused_parameters=exact,
        )


def without_sync(network: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Leave out the averaging, where more gradients of the same step are to come."""
    return network.no_sync() if skip and isinstance(network, DistributedDataParallel) else nullcontext()
