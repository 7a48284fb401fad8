"""The model as a training step sees it: with its reconstruction loss, on one process or many."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitcod_cli import distributed
from vitcod_cli.model.layers import reconstruction_loss
from vitcod_cli.runtime import Runtime
from vitcod_cli.training.losses import Outputs


class TrainingModel(nn.Module):
    """``model`` that also returns its reconstruction loss, over this process's whole batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Outputs, Tensor]:
        """Images [B, C, H, W] to (logits [B, classes] or those of two heads, a scalar)."""
        outputs: Outputs = self.model(images)
        recon = reconstruction_loss(self.model)
        return outputs, images.new_zeros(()) if recon is None else recon


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
