"""Batches of normalised images on the device, for training, evaluation and calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.batches import BatchReader, place
from vitcod_cli.data.calibration import CalibrationImages, calibration_images
from vitcod_cli.data.images import ImageData, warn
from vitcod_cli.data.order import Epochs, keys_of
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.streams import StreamImages, StreamReader
from vitcod_cli.reporting import Reporter

__all__ = ["CalibrationImages", "EvalLoader", "TrainLoader", "calibration_images", "eval_loader", "train_loader"]

Batches = Iterator[tuple[Tensor, Tensor, Tensor]]


class EvalLoader:
    """Every image exactly once over all processes; iterates (images, targets).

    Images are float32 [B, C, H, W] and targets int64 [B], on the device. Process r takes the images
    r, r + world, ...: nothing is padded, so the processes' batches may differ in number by one.

    Attributes:
        num_images: images of this process, unreadable ones included; 0 for a stream of unknown length.
    """

    def __init__(self, read: Callable[[], Batches], num_images: int, batch_size: int) -> None:
        self._read = read
        self._batch_size = batch_size
        self.num_images = num_images

    def __len__(self) -> int:
        """Batches of this process (one without a readable picture is left out)."""
        return math.ceil(self.num_images / self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets, _ in self._read():
            yield images, targets


def eval_loader(
    dataset: ImageData,
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    transform: Literal["eval", "train"] = "eval",
    augmentation: AugmentationSettings | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> EvalLoader:
    """A loader that shows every image once, in order, spread over the processes.

    An unreadable picture is left out, with a warning: a replacement would falsify the figures.

    Args:
        transform: ``train`` gives one draw of the training transform of each image.
        augmentation: of that draw; DeiT's if left out.
        seed: of that draw.
        rank: place among the processes; of the running job if left out.
        world: number of processes; of the running job if left out.
    """
    rank, world = place(rank, world)
    train = transform == "train"
    function = (
        preprocess.train_transform(augmentation or AugmentationSettings())
        if train
        else preprocess.eval_transform()
    )
    mine = np.arange(len(dataset))[rank::world]
    if isinstance(dataset, StreamImages):
        stream = StreamReader(
            dataset,
            preprocess,
            function,
            batch_size=batch_size,
            workers=workers,
            device=device,
            rank=rank,
            world=world,
            training=False,
            seed=seed,
            random=train,
        )
        return EvalLoader(stream.read, len(mine), batch_size)
    reader = BatchReader(
        dataset, preprocess, function, workers=workers, device=device, replace_bad=False, reporter=reporter
    )
    keys = keys_of(mine, mine, (seed, 0) if train else None)
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return EvalLoader(lambda: reader.read(batches), len(keys), batch_size)


class TrainLoader:
    """Shuffled and augmented batches; iterates (images, targets, indices).

    Images are float32 [B, C, H, W] and targets int64 [B] on the device; indices int64 [B] on the
    CPU are those of the data set, for ``dataset.describe``.

    Attributes:
        global_batch: images of one step over all processes.
    """

    def __init__(self, read: Callable[[int, int], Batches], steps: int, global_batch: int) -> None:
        self._read = read
        self._steps = steps
        self._epoch = self._start = 0
        self.global_batch = global_batch

    def __len__(self) -> int:
        """Steps of an epoch, the same in every process."""
        return self._steps

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """What the next iteration gives: the batches ``start_batch``, ... of epoch ``epoch``."""
        self._epoch, self._start = epoch, start_batch

    def __iter__(self) -> Batches:
        return self._read(self._epoch, self._start)


def train_loader(
    dataset: ImageData,
    preprocess: Preprocess,
    augmentation: AugmentationSettings,
    *,
    batch_size: int,
    workers: int | None,
    device: torch.device,
    seed: int,
    reporter: Reporter | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> TrainLoader:
    """A loader whose batches depend on ``seed``, the epoch and the global batch size only.

    See :class:`~vitcod_cli.data.order.Epochs` for the order. An unreadable picture is replaced by the
    next readable one, with a warning.

    Args:
        batch_size: images of each step in this process.
        rank: place among the processes; of the running job if left out.
        world: number of processes; of the running job if left out.
    """
    rank, world = place(rank, world)
    function = preprocess.train_transform(augmentation)
    global_batch = batch_size * world
    if isinstance(dataset, StreamImages):
        stream = StreamReader(
            dataset,
            preprocess,
            function,
            batch_size=batch_size,
            workers=workers,
            device=device,
            rank=rank,
            world=world,
            training=True,
            seed=seed,
        )
        return TrainLoader(stream.read, len(stream), global_batch)
    reader = BatchReader(
        dataset, preprocess, function, workers=workers, device=device, replace_bad=True, reporter=reporter
    )
    epochs = Epochs(
        len(dataset), batch_size=batch_size, repeats=augmentation.repeats, seed=seed, rank=rank, world=world
    )
    if epochs.wraps:
        warn(
            f"There are only {len(dataset)} training images for a global batch of {global_batch}: "
            "some are shown more than once in each step.",
            reporter,
        )
    return TrainLoader(lambda epoch, start: reader.read(epochs.batches(epoch, start)), len(epochs), global_batch)
