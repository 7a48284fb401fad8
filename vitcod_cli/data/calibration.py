"""A few hundred images kept in memory, for the passes of a calibration."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.reading import Reading
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import available_memory, gigabytes, local_processes
from vitcod_cli.reporting import QUIET, Reporter

_BATCH = 32


class CalibrationImages:
    """Images decoded once and kept as bytes: this process's share of them.

    ``len()`` is this process's number of images, ``num_images`` that of all processes. They take
    ``len * C * H * W`` bytes of main memory. With several crops of each image (:meth:`with_crops`)
    all images come first in their first crop, then all in their second, and so on.
    """

    def __init__(
        self, images: Tensor, preprocess: Preprocess, device: torch.device, num_images: int, crops: int = 1
    ) -> None:
        self.crops = crops
        self._images = images
        self._preprocess = preprocess
        self._device = device
        self.num_images = num_images

    def __len__(self) -> int:
        return len(self._images)

    def with_crops(self, others: Sequence[CalibrationImages]) -> CalibrationImages:
        """These images together with other crops of the same ones.

        Raises:
            VitcodError: if they aren't the same ones: a file was changed in between.
        """
        if any(len(other) != len(self) for other in others):
            raise VitcodError(
                "The calibration images changed while they were read: other files could be read at first than at "
                "the next crop; let the data set rest, or use --calibrate-crops 1."
            )
        if not others:
            return self
        images = torch.cat([self._images, *(other._images for other in others)])
        return CalibrationImages(images, self._preprocess, self._device, self.num_images, 1 + len(others))

    def first_crops(self) -> CalibrationImages:
        """Each image once, in its first crop."""
        images = self._images[: len(self) // self.crops]
        return CalibrationImages(images, self._preprocess, self._device, self.num_images)

    def first(self, count: int) -> CalibrationImages:
        """This process's share of the first ``count`` images, in their first crop; of all, if there are fewer."""
        share = len(range(distributed.rank(), min(count, self.num_images), distributed.world_size()))
        images = self._images[: min(share, len(self) // self.crops)]
        return CalibrationImages(images, self._preprocess, self._device, min(count, self.num_images))

    def checksum(self) -> str:
        """The SHA-256 of this process's images."""
        return hashlib.sha256(self._images.numpy().data).hexdigest()

    def tensor(self, indices: Tensor | slice) -> Tensor:
        """The images at these indices of this process's share, normalised float32 [n, C, H, W] on the device."""
        return self._preprocess.to_device(self._images[indices], self._device)

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """All images once, in their order, or shuffled by ``generator``; float32 [B, C, H, W] on the device."""
        if generator is None:
            for start in range(0, len(self), batch_size):
                yield self.tensor(slice(start, start + batch_size))
        else:
            order = torch.randperm(len(self), generator=generator)
            for start in range(0, len(self), batch_size):
                yield self.tensor(order[start : start + batch_size])


def calibration_images(
    dataset: ImageData,
    preprocess: Preprocess,
    count: int,
    *,
    workers: int | None,
    device: torch.device,
    seed: int,
    crops: Literal["center", "random"] = "center",
    draw: int = 0,
    flag: str = "--calibrate-images",
    reporter: Reporter = QUIET,
) -> CalibrationImages:
    """Read ``count`` images, drawn by ``seed`` from the whole data set and spread over the processes.

    If there are fewer, all are used, and ``reporter`` says so. Unreadable images are left out. Of
    a stream the first ``count`` are taken.

    Args:
        crops: ``center`` is the evaluation transform; ``random`` a random crop and flip of each.
        draw: which random crop: another number gives another crop of the same images.
        flag: the option that ``count`` is from.

    Raises:
        VitcodError: if they would not fit in memory, more than a few can't be read, or a process gets none.
    """
    random = crops == "random"
    reader = dataset.reader(
        Reading(
            preprocess=preprocess,
            transform=preprocess.random_crop_transform() if random else preprocess.eval_transform(),
            random=random,
            draw=draw,
            batch_size=_BATCH,
            workers=workers,
            device=torch.device("cpu"),
            seed=seed,
            raw=True,
            reporter=reporter,
        )
    )
    rank, world_size = distributed.rank(), distributed.world_size()
    share = len(range(rank, min(count, len(dataset) or count), world_size))  # a stream may not say how many
    _check_memory(share if len(dataset) else 0, preprocess, flag)
    images = torch.empty(share if len(dataset) else 0, *preprocess.input_size, dtype=torch.uint8)
    rest: list[Tensor] = []
    read = 0
    with reporter.progress("read images", share) as progress:
        batches = reader.sample(count)
        while read < share and (batch := next(batches, None)) is not None:
            part = batch[0][: share - read]
            if len(images):
                images[read : read + len(part)] = part
            else:
                rest.append(part)
            read += len(part)
            progress.advance(len(part))
    everyone = distributed.gather_objects(read)
    total = sum(everyone)
    if count and not all(everyone):
        processes = f"{world_size} processes" if total else "calibration"
        raise VitcodError(
            f"{total} readable training images are too few for {processes}; look at --data-path and its warnings, "
            "or use fewer processes."
        )
    if total < count:
        reporter.info(f"Calibration uses {total} images: there are no more ({count} were asked for).")
    return CalibrationImages(
        torch.cat([images[:read], *rest]) if rest else images[:read], preprocess, device, total
    )


def _check_memory(count: int, preprocess: Preprocess, flag: str) -> None:
    """Raise a VitcodError if ``count`` images in each process of this machine are more than it has room for."""
    need, left = count * local_processes() * math.prod(preprocess.input_size), available_memory()
    if left is not None and need > left:
        raise VitcodError(
            f"{flag}: {count} images need {gigabytes(need)} of main memory, and there are {gigabytes(left)} left; "
            "take fewer."
        )
