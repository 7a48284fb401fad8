"""Batches of normalised images on the device, for training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.reading import Batches, Reading
from vitcod_cli.reporting import Reporter


class EvalLoader:
    """Every image exactly once over all processes; iterates (images, targets).

    Images are float32 [B, C, H, W] and targets int64 [B], on the device. Process r takes the images
    r, r + world_size, ...: nothing is padded, so the processes' batches may differ in number by one.

    Attributes:
        num_images: images of this process, unreadable ones included; 0 for a stream of unknown length.
    """

    def __init__(self, read: Callable[[], Batches], num_images: int, batch_size: int) -> None:
        self._read = read
        self._batch_size = batch_size
        self.num_images = num_images

    def __len__(self) -> int:
        """Batches of this process (one without a readable image is left out)."""
        return math.ceil(self.num_images / self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(itemgetter(0, 1), self._read())  # which holds no batch while the next is read


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
) -> EvalLoader:
    """A loader that shows every image once, in order, spread over the processes.

    An unreadable image is left out, with a warning: a replacement would falsify the metrics.

    Args:
        transform: ``train`` gives one draw of the training transform of each image.
        augmentation: of that draw; DeiT's if left out.
        seed: of that draw.
    """
    train = transform == "train"
    function = preprocess.eval_transform()
    if train:
        function = preprocess.train_transform(augmentation or AugmentationSettings())
    reader = dataset.reader(
        Reading(
            preprocess=preprocess,
            transform=function,
            random=train,
            batch_size=batch_size,
            workers=workers,
            device=device,
            seed=seed,
            reporter=reporter,
        )
    )
    return EvalLoader(reader.one_pass, reader.num_images, batch_size)


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
) -> TrainLoader:
    """A loader whose batches depend on ``seed``, the epoch and the global batch size only.

    See :class:`~vitcod_cli.data.order.Epochs` for the order. An unreadable image is replaced by the
    next readable one, with a warning.

    Args:
        batch_size: images of each step in this process.

    Raises:
        VitcodError: if the data set doesn't say how many images it has.
    """
    dataset.check_countable("--train-split")
    reader = dataset.reader(
        Reading(
            preprocess=preprocess,
            transform=preprocess.train_transform(augmentation),
            random=True,
            training=True,
            repeats=augmentation.repeats,
            batch_size=batch_size,
            workers=workers,
            device=device,
            seed=seed,
            reporter=reporter,
        )
    )
    return TrainLoader(reader.epoch, reader.steps, batch_size * distributed.world_size())
