"""Batches of normalised images on the device, for training, evaluation and calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.batches import BatchReader
from vitcod_cli.data.images import ImageData, warn
from vitcod_cli.data.order import repeated, shuffled, stable_seed
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.reporting import Reporter, SilentReporter


class EvalLoader:
    """Every image exactly once over all processes; iterates (images, targets).

    Images are float32 [B, C, H, W] and targets int64 [B], on the device. Process r takes the images
    r, r + world, ...: nothing is padded, so the processes' batches may differ in number by one.
    """

    def __init__(self, reader: BatchReader, keys: np.ndarray, batch_size: int) -> None:
        self._reader = reader
        self._keys = keys
        self._batch_size = batch_size

    @property
    def num_images(self) -> int:
        """Images of this process."""
        return len(self._keys)

    def __len__(self) -> int:
        """Batches of this process (a batch without a readable picture is left out)."""
        return math.ceil(len(self._keys) / self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        starts = range(0, len(self._keys), self._batch_size)
        for images, targets, _ in self._reader.read([self._keys[i : i + self._batch_size] for i in starts]):
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
        augmentation, seed: of that draw.
    """
    rank, world = _place(rank, world)
    train = transform == "train"
    augmentation = augmentation or AugmentationSettings()
    keys = _keys(np.arange(len(dataset))[rank::world], np.arange(len(dataset))[rank::world], (seed, 0), train)
    reader = BatchReader(
        dataset,
        preprocess,
        preprocess.train_transform(augmentation or AugmentationSettings())
        if train
        else preprocess.eval_transform(),
        workers=workers,
        device=device,
        replace_bad=False,
        reporter=reporter,
    )
    return EvalLoader(reader, keys, batch_size)


class TrainLoader:
    """Shuffled and augmented batches; iterates (images, targets, indices).

    Images are float32 [B, C, H, W] and targets int64 [B] on the device; indices int64 [B] on the
    CPU are those of the data set, for ``dataset.describe``.
    """

    def __init__(
        self, reader: BatchReader, length: int, *, batch_size: int, repeats: int, seed: int, rank: int, world: int
    ) -> None:
        self._reader = reader
        self._length, self._repeats, self._seed = length, repeats, seed
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._epoch = self._start = 0

    @property
    def global_batch(self) -> int:
        """Images of one step over all processes."""
        return self._batch_size * self._world

    def __len__(self) -> int:
        """Steps of an epoch, the same in every process."""
        return max(1, self._epoch_length // self.global_batch)

    @property
    def _epoch_length(self) -> int:
        return len(repeated(np.empty(self._length, dtype=np.int8), self._repeats))

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """What the next iteration gives: the batches ``start_batch``, ... of epoch ``epoch``."""
        self._epoch, self._start = epoch, start_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = repeated(shuffled(self._length, self._seed, self._epoch), self._repeats)
        if len(order) < self.global_batch:
            order = np.resize(order, self.global_batch)
        positions = np.arange(len(order))
        batches = []
        for step in range(self._start, len(self)):
            first = step * self.global_batch
            mine = slice(first + self._rank, first + self.global_batch, self._world)
            batches.append(_keys(order[mine], positions[mine], (self._seed, self._epoch), True))
        yield from self._reader.read(batches)


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

    The order of an epoch is one list for all processes, repeats of a picture side by side as in
    DeiT's repeated augmentation; step g takes its g-th ``batch_size * world`` entries and process
    r of them r, r + world, ... The last incomplete batch is dropped. An unreadable picture is
    replaced by the next readable one, with a warning.
    """
    rank, world = _place(rank, world)
    reader = BatchReader(
        dataset,
        preprocess,
        preprocess.train_transform(augmentation),
        workers=workers,
        device=device,
        replace_bad=True,
        reporter=reporter,
    )
    loader = TrainLoader(
        reader,
        len(dataset),
        batch_size=batch_size,
        repeats=augmentation.repeats,
        seed=seed,
        rank=rank,
        world=world,
    )
    if loader._epoch_length < loader.global_batch:
        warn(
            f"There are only {len(dataset)} training images for a global batch of {loader.global_batch}: "
            "some are shown more than once in each step.",
            reporter,
        )
    return loader


class CalibrationImages:
    """A few hundred pictures, decoded once and kept as bytes: this process's share of them.

    ``len()`` is this process's number of pictures, ``num_images`` that of all processes. They take
    ``len * C * H * W`` bytes of main memory.
    """

    def __init__(self, images: Tensor, preprocess: Preprocess, device: torch.device) -> None:
        self._images = images
        self._preprocess = preprocess
        self._device = device
        self.num_images = sum(distributed.gather_objects(len(images)))

    def __len__(self) -> int:
        return len(self._images)

    def tensor(self, indices: Tensor | slice) -> Tensor:
        """These pictures, normalised float32 [n, C, H, W] on the device."""
        return self._preprocess.to_device(self._images[indices], self._device)

    def batches(self, batch_size: int, *, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """All pictures once, in their order, or shuffled by ``generator``; float32 [B, C, H, W] on the device."""
        if generator is None:
            for start in range(0, len(self), batch_size):
                yield self.tensor(slice(start, start + batch_size))
        else:
            for indices in torch.randperm(len(self), generator=generator).split(batch_size):  # type: ignore[no-untyped-call]
                yield self.tensor(indices)


def calibration_images(
    dataset: ImageData,
    preprocess: Preprocess,
    count: int,
    *,
    workers: int | None,
    device: torch.device,
    seed: int,
    crops: Literal["center", "random"] = "center",
    reporter: Reporter | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> CalibrationImages:
    """Read ``count`` pictures, drawn by ``seed`` from the whole data set and spread over the processes.

    Args:
        crops: ``center`` is the evaluation transform; ``random`` a random crop and flip of each.
    """
    rank, world = _place(rank, world)
    reporter = reporter or SilentReporter()
    if count > len(dataset):
        reporter.info(f"There are {len(dataset)} images, fewer than the {count} asked for: all of them are used.")
    drawn = shuffled(len(dataset), seed)[:count]
    mine = _keys(drawn[rank::world], np.arange(len(drawn))[rank::world], (seed, 0), crops == "random")
    reader = BatchReader(
        dataset,
        preprocess,
        preprocess.random_crop_transform() if crops == "random" else preprocess.eval_transform(),
        workers=workers,
        device=torch.device("cpu"),
        replace_bad=False,
        reporter=reporter,
    )
    parts = []
    with reporter.progress("read images", len(mine)) as progress:
        for images, _, _ in reader.read(np.array_split(mine, -(-len(mine) // 32)) if len(mine) else [], raw=True):
            parts.append(images.clone())
            progress.advance(len(images))
    empty = torch.empty(0, *preprocess.input_size, dtype=torch.uint8)
    return CalibrationImages(torch.cat([empty, *parts]), preprocess, device)


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    return (
        distributed.rank() if rank is None else rank,
        distributed.world_size() if world is None else world,
    )


def _keys(indices: np.ndarray, positions: np.ndarray, seed: tuple[int, int], random: bool) -> np.ndarray:
    """[n, 2] int64: what the workers are told of each picture, its index and its own seed (-1: none needed)."""
    seeds = [stable_seed(*seed, int(position)) if random else -1 for position in positions]
    return np.stack([indices, np.array(seeds, dtype=np.int64)], axis=1)
