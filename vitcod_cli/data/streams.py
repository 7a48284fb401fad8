"""Data sets that can only be read from front to back: timm's wds/, hfids/ and tfds/.

They have no indices, so two promises of the others are weaker: a training epoch depends on the
number of processes and workers (the same ones give the same epoch again), and the data library
itself skips what it can't read. Evaluation still counts every image exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vitcod_cli import distributed
from vitcod_cli.data.batches import Sample, collate, one_sentence
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.order import own_randomness, seed_all, stable_seed
from vitcod_cli.data.preprocess import Transform
from vitcod_cli.data.reading import Batches, Reader, Reading
from vitcod_cli.data.workers import default_workers, start_worker
from vitcod_cli.errors import VitcodError


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

    def reader(self, reading: Reading) -> Reader:
        """Reads all images for one pass, a shuffled share of them for training."""
        return StreamReader(self, reading)

    def evenly_spaced(self, count: int) -> ImageData:
        """The whole: whoever reads it stops after ``count`` images."""
        return self

    def check_countable(self, flag: str) -> None:
        """See :meth:`ImageData.check_countable`; ``flag`` is the option that names the split.

        Raises:
            VitcodError: if the data set doesn't say how many images it has.
        """
        if not self._length:
            raise VitcodError(
                f"--dataset {self.name} doesn't say how many images its training split has; say it behind the "
                f"shards, as in {flag} 'name-{{0000..0049}}.tar|50000'."
            )

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
    """The :class:`~vitcod_cli.data.reading.Reader` of a stream."""

    def __init__(self, data: StreamImages, reading: Reading) -> None:
        self._reading = reading
        self._rank, self._world_size = distributed.rank(), distributed.world_size()
        self._workers = default_workers() if reading.workers is None else reading.workers
        self._source = data.open_source(reading.training, reading.batch_size, stable_seed(reading.seed) % 2**31)
        reader = self._source.reader
        # Training gives each process shards of its own. Else each goes through all and keeps every
        # world_size-th image, for shards are rarely of equal length.
        shards = (self._rank, self._world_size) if reading.training else (0, 1)
        reader.dist_rank, reader.dist_num_replicas = shards
        self._source.set_loader_cfg(num_workers=self._workers)
        self.num_images = len(range(self._rank, len(data), self._world_size))
        self.steps = max(1, len(self._source) // reading.batch_size) if reading.training else 0

    def one_pass(self) -> Batches:
        """Every image of this process once, in the order of the stream."""
        return self._read(0, self._workers)

    def epoch(self, epoch: int, start: int) -> Batches:
        """The batches ``start``, ... of a training epoch; those before them are read and dropped."""
        return islice(self._read(epoch, self._workers), start, self.steps)

    def sample(self, count: int) -> Batches:
        """This process's share of the first ``count`` images."""
        # One worker keeps the images in their order, so that the first ones are the same for all processes.
        self._source.set_loader_cfg(num_workers=min(self._workers, 1))
        return self._read(0, min(self._workers, 1))

    def _read(self, epoch: int, workers: int) -> Batches:
        """(images, targets, indices) of each batch; the indices are all -1."""
        reading = self._reading
        self._source.reader.ds = None
        self._source.set_epoch(epoch)
        # One of epoch and draw is 0: training has no draws.
        seed = (reading.seed, epoch + reading.draw, self._rank) if reading.random else None
        samples = _Samples(self._source, reading.preprocess.mode, reading.transform, seed)
        if not reading.training:
            samples.share = slice(self._rank, None, self._world_size)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_size=reading.batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=reading.device.type == "cuda",
            drop_last=reading.training,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(stable_seed(reading.seed, epoch, self._rank)),
        )
        for batch in one_sentence(loader):
            images = batch.images
            if not reading.raw:
                images = reading.preprocess.to_device(images, reading.device)
            yield images, batch.targets.to(reading.device, non_blocking=True), batch.indices
