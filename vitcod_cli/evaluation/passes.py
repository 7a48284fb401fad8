"""Several models over the same images: what each gives for a batch, and what all processes have found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

T = TypeVar("T")


def outputs_of(
    models: Sequence[nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    description: str,
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """For each batch what every model makes of it, float32, and its targets; the images are read once.

    Args:
        models: in eval mode, on the runtime's device; images as all of them expect.
        loader: (images [B, C, H, W] normalised, targets) of this process.
    """
    for images, targets in batches_of(loader, runtime, reporter, description):
        with torch.no_grad(), runtime.autocast():
            outputs = [model(images).float() for model in models]
        yield outputs, targets


def batches_of(
    loader: Iterable[tuple[Tensor, Tensor]], runtime: Runtime, reporter: Reporter, description: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of ``loader``, images [B, C, H, W] on the runtime's device, with progress told."""
    with reporter.progress(description, total=getattr(loader, "num_images", None), unit="images") as progress:
        for batch, targets in loader:
            yield runtime.to_device(batch), targets
            progress.advance(len(batch))


def gathered(found: Sequence[Sequence[T]]) -> list[list[T]]:
    """For each model what all processes have found of it, batch by batch; the same in each process.

    Args:
        found: this process's, on the CPU; as many of each model.

    Raises:
        VitcodError: if no process has anything.
    """
    processes = distributed.gather_objects(found)
    if not any(process[0] for process in processes):
        raise nothing_to_evaluate()
    return [[part for process in processes for part in process[index]] for index in range(len(found))]


@contextmanager
def evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """``models`` in eval mode for the time of the block."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def nothing_to_evaluate() -> VitcodError:
    """That no process has an image that can be read."""
    return VitcodError("There is no image to evaluate on that can be read; check --data-path and the split.")
