"""Data sets that can only be read from front to back: timm's wds/, hfids/ and tfds/.

They have no indices, so two promises of the others are weaker: a training epoch depends on the
number of processes and workers (the same ones give the same epoch again), and the data library
itself skips what it can't read. Evaluation still counts every image exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vitcod_cli.data.batches import Sample, collate, one_sentence
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.order import own_randomness, seed_all, stable_seed
from vitcod_cli.data.preprocess import Preprocess, Transform
from vitcod_cli.data.workers import default_workers, start_worker


class StreamImages(ImageData):
    """A data set of timm's that is read from front to back; the loaders know what to do with it.

    Args:
        open_source: makes timm's data set, in training mode or not, for a batch size and a seed.
        length: number of images, or 0 if the source doesn't say.
    """

    def __init__(
        self,
        name: str,
        open_source: Callable[[bool, int, int], Any],
        length: int,
        num_classes: int,
        max_bad_images: int = 10,
    ) -> None:
        super().__init__(num_classes, max_bad_images)
        self.name = name
        self.open_source = open_source
        self._length = length

    def __len__(self) -> int:
        """The number of images, or 0 where the data set doesn't say."""
        return self._length

    def describe(self, index: int) -> str:
        """An image of a stream has no name."""
        return f"an image of {self.name}"

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        source = self.open_source(False, 1, 0)
        source.transform = self.transform
        yield from source

    def __getitem__(self, index: int) -> tuple[Any, int]:
        raise TypeError(f"{self.name} can only be read from front to back")


class _Samples(IterableDataset[Sample]):
    """What lives in the workers: one pass over this process's share of the source."""

    def __init__(self, source: Any, mode: str, transform: Transform, seed: tuple[int, ...] | None) -> None:
        self.source, self.mode, self.transform, self.seed = source, mode, transform, seed
        self.share = slice(0, None, 1)

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        for count, (image, target) in enumerate(self.source):
            if count % self.share.step != self.share.start:
                continue
            with own_randomness():
                if self.seed is not None:
                    seed_all(stable_seed(*self.seed, worker, count))
                sample: Sample = self.transform(image.convert(self.mode)), int(target), -1, []
            yield sample


class StreamReader:
    """Batches of a stream: of all its images for evaluation, of a shuffled share for training."""

    def __init__(
        self,
        data: StreamImages,
        preprocess: Preprocess,
        transform: Transform,
        *,
        batch_size: int,
        workers: int | None,
        device: torch.device,
        rank: int,
        world: int,
        training: bool,
        seed: int,
        random: bool = False,
    ) -> None:
        self._preprocess, self._transform, self._device = preprocess, transform, device
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._training, self._seed, self._random = training, seed, random or training
        self._workers = default_workers() if workers is None else workers
        self._source = data.open_source(training, batch_size, stable_seed(seed) % 2**31)
        reader = self._source.reader
        # Training gives each process shards of its own. For evaluation each goes through all and keeps
        # every world-th image, for shards are rarely of equal length.
        reader.dist_rank, reader.dist_num_replicas = (rank, world) if training else (0, 1)
        self._source.set_loader_cfg(num_workers=self._workers)

    def __len__(self) -> int:
        """Batches of a pass."""
        images = len(self._source)
        if self._training:
            return max(1, images // self._batch_size)
        return math.ceil(len(range(self._rank, images, self._world)) / self._batch_size)

    def read(
        self, epoch: int = 0, start: int = 0, *, raw: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, targets, indices) of each batch of an epoch from ``start`` on; the indices are all -1.

        The batches before ``start`` are read and dropped.
        """
        self._source.reader.ds = None
        self._source.set_epoch(epoch)
        seed = (self._seed, epoch, self._rank) if self._random else None
        samples = _Samples(self._source, self._preprocess.mode, self._transform, seed)
        if not self._training:
            samples.share = slice(self._rank, None, self._world)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_size=self._batch_size,
            num_workers=self._workers,
            collate_fn=collate,
            pin_memory=self._device.type == "cuda",
            drop_last=self._training,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(stable_seed(self._seed, epoch, self._rank)),
        )
        for step, batch in enumerate(one_sentence(loader)):
            if step < start:
                continue
            if self._training and step == len(self):
                return
            images = batch.images if raw else self._preprocess.to_device(batch.images, self._device)
            yield images, batch.targets.to(self._device, non_blocking=True), batch.indices
