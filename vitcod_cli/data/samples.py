"""What goes from the processes that read images to the one that computes: samples, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from vitcod_cli.data.bad_images import BadImages
from vitcod_cli.data.decode import UnreadableImageError, check_pixels, reason_of
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.reading import Reading
from vitcod_cli.errors import VitcodError


@dataclass(frozen=True)
class Sample:
    """What a worker makes of an image.

    Attributes:
        image: None where it can't be read.
        bad: what could not be read on the way: (name, reason).
        failure: why the worker can't go on, in a sentence.
    """

    image: Tensor | None
    target: int = -1
    index: int = -1
    bad: Sequence[tuple[str, str]] = ()
    failure: str = ""


class Batch(NamedTuple):
    """What comes back from a worker."""

    images: Tensor
    targets: Tensor
    indices: Tensor
    missing: int
    bad: list[tuple[str, str]]
    failure: str

    def pin_memory(self) -> Batch:
        """What DataLoader's pinning thread calls."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), *self[2:])


def prepared(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """``image``, decoded and in the mode that the transforms take.

    Raises:
        UnreadableImageError: if it can't be decoded, or not be resized within bounds.
    """
    try:
        with image:
            check_pixels(*image.size)
            preprocess.check_size(*image.size)
            image.load()
            return image if image.mode == preprocess.mode else image.convert(preprocess.mode)
    except UnreadableImageError:
        raise
    except Exception as error:  # see decode()
        raise UnreadableImageError(reason_of(error)) from error


def collate(samples: list[Sample]) -> Batch:
    """One batch of the samples that could be read."""
    good = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in good if sample.image is not None]
    return Batch(
        _sent(torch.stack(images) if images else torch.empty(0)),
        _sent(torch.tensor([sample.target for sample in good], dtype=torch.int64)),
        _sent(torch.tensor([sample.index for sample in good], dtype=torch.int64)),
        len(samples) - len(good),
        [bad for sample in samples for bad in sample.bad],
        next((sample.failure for sample in samples if sample.failure), ""),
    )


def _sent(tensor: Tensor) -> Tensor:
    """``tensor`` where the main process finds it.

    The thread that sends a batch would do this, too; but nobody is told when it fails, and all would wait.
    """
    return tensor if get_worker_info() is None else tensor.share_memory_()  # type: ignore[no-untyped-call]


class Labelled(Protocol):
    """What :func:`deliver` needs of a data set."""

    num_classes: int
    labelled: bool

    def describe(self, index: int) -> str:
        """A name for messages."""


def report(batch: Batch, bad_images: BadImages, reading: Reading) -> None:
    """Warn of the images of a batch that could not be read.

    Raises:
        VitcodError: if there are too many by now, or the worker could not go on.
    """
    for name, reason in batch.bad:
        bad_images.report(name, reason, replaced=reading.training, reporter=reading.reporter)
    if batch.failure:
        raise VitcodError(batch.failure)


def deliver(batch: Batch, data: Labelled, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """Images, targets and indices as the model takes them, on the device.

    Raises:
        VitcodError: for a label that is none of the classes, which a GPU would answer by a crash.
    """
    images, targets, indices = batch[:3]
    if reading.raw:
        return images, targets, indices
    wrong = torch.nonzero((targets < 0) | (targets >= data.num_classes)).flatten().tolist()
    if wrong and data.labelled:
        label = int(targets[wrong[0]])
        what = "no label" if label == -1 else f"the label {label}"
        raise VitcodError(
            f"{data.describe(int(indices[wrong[0]]))} has {what}, but labels go from 0 to {data.num_classes - 1}; "
            "mend the data set, or take another split."
        )
    images = reading.preprocess.to_device(images, reading.device)
    return images, targets.to(reading.device, non_blocking=True), indices
