"""Data sets that can only be read from front to back: timm's wds/, hfids/ and tfds/.

They have no indices, so two promises of the others are weaker: a training epoch depends on the
number of processes and workers (the same ones give the same epoch again), and images of hfids/ and
tfds/ are decoded by their libraries. Evaluation still counts every image exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vitcod_cli import distributed
from vitcod_cli.data.bad_images import warn
from vitcod_cli.data.batches import one_sentence
from vitcod_cli.data.decode import UnreadableImageError, reason_of, without_ghostscript
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.order import own_randomness, seed_all, stable_seed
from vitcod_cli.data.reading import Batches, Reader, Reading
from vitcod_cli.data.samples import Batch, Sample, collate, deliver, prepared, report
from vitcod_cli.data.shards import RawImage, ShardReader
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

    def __init__(self, source: Any, name: str, reading: Reading, seed: tuple[int, ...] | None) -> None:
        self.source, self.name, self.seed = source, name, seed
        self.preprocess, self.transform = reading.preprocess, reading.transform
        self.share = slice(0, None, 1)

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        bad: list[tuple[str, str]] = []
        iterator, count = iter(self.source), -1
        while True:
            try:
                with without_ghostscript():
                    image, target = next(iterator)
            except StopIteration:
                break
            except Exception as error:  # of the library that reads the stream; it can't go on after one
                yield Sample(None, bad=bad, failure=self._failure(error))
                return
            count += 1
            if count % self.share.step != self.share.start:
                continue
            try:
                with own_randomness():
                    if self.seed is not None:
                        seed_all(stable_seed(*self.seed, worker, count))
                    sample = Sample(self.transform(self._prepared(image)), int(target), -1, bad)
            except UnreadableImageError as error:
                bad.append((image.name if isinstance(image, RawImage) else f"an image of {self.name}", str(error)))
                continue
            yield sample
            bad = []
        if bad:
            yield Sample(None, bad=bad)

    def _prepared(self, image: Any) -> Image.Image:
        return prepared(image.decoded() if isinstance(image, RawImage) else image, self.preprocess)

    def _failure(self, error: Exception) -> str:
        if isinstance(error, VitcodError):
            return str(error)
        return (
            f"--dataset {self.name} can't be read to its end ({type(error).__name__}: {reason_of(error)}); "
            "fetch it anew."
        )


class StreamReader:
    """The :class:`~vitcod_cli.data.reading.Reader` of a stream."""

    def __init__(self, data: StreamImages, reading: Reading) -> None:
        self._data, self._reading = data, reading
        self._rank, self._world_size = distributed.rank(), distributed.world_size()
        self._workers = default_workers() if reading.workers is None else reading.workers
        self._source = data.open_source(reading.training, reading.batch_size, stable_seed(reading.seed) % 2**31)
        reader = self._source.reader
        # Training gives each process shards of its own. Else each goes through all and keeps every
        # world_size-th image, for shards are rarely of equal length.
        reader.dist_rank, reader.dist_num_replicas = (self._rank, self._world_size) if reading.training else (0, 1)
        if reading.training and isinstance(reader, ShardReader):  # a worker without a shard has nothing to give
            self._workers = min(self._workers, max(1, len(reader.shards.paths) // self._world_size))
        self._source.set_loader_cfg(num_workers=self._workers)
        self.num_images = len(range(self._rank, len(data), self._world_size))
        self.steps = max(1, len(self._source) // reading.batch_size) if reading.training else 0

    def one_pass(self) -> Batches:
        """Every image of this process once, in the order of the stream."""
        seen = 0
        for batch in self._read(0, self._workers):
            seen += len(batch.targets) + len(batch.bad)
            if len(batch.targets):
                yield deliver(batch, self._data, self._reading)
        if self.num_images and seen != self.num_images:
            share = f" in the share of process {self._rank}" if self._world_size > 1 else ""
            warn(
                f"--dataset {self._data.name} should have {self.num_images} images{share} and has {seen}; "
                "if shards are missing, the result is not that of the whole.",
                self._reading.reporter,
            )

    def epoch(self, epoch: int, start: int) -> Batches:
        """The batches ``start``, ... of a training epoch; those before them are read and dropped."""
        return islice(self._endless(epoch), start, self.steps)

    def sample(self, count: int) -> Batches:
        """This process's share of the first ``count`` images."""
        # One worker keeps the images in their order, so that the first ones are the same for all processes.
        self._source.set_loader_cfg(num_workers=min(self._workers, 1))
        for batch in self._read(0, min(self._workers, 1)):
            if len(batch.targets):
                yield deliver(batch, self._data, self._reading)

    def _endless(self, epoch: int) -> Batches:
        """Full batches, going round: processes with fewer would keep the others waiting for ever.

        Raises:
            VitcodError: if there is not one.
        """
        none = False
        while not none:
            none = True
            for batch in self._read(epoch, self._workers):
                if len(batch.targets) == self._reading.batch_size:
                    none = False
                    yield deliver(batch, self._data, self._reading)
        raise VitcodError(
            f"--dataset {self._data.name} has no full batch of readable images for a process that trains; give "
            "fewer --workers or a smaller --batch-size, or look at its shards."
        )

    def _read(self, epoch: int, workers: int) -> Iterator[Batch]:
        """The batches of one pass; their indices are all -1.

        Raises:
            VitcodError: for more unreadable images than allowed, a stream that breaks off or a worker that died.
        """
        reading = self._reading
        self._source.reader.ds = None
        self._source.set_epoch(epoch)
        # One of epoch and draw is 0: training has no draws.
        seed = (reading.seed, epoch + reading.draw, self._rank) if reading.random else None
        samples = _Samples(self._source, self._data.name, reading, seed)
        if not reading.training:
            samples.share = slice(self._rank, None, self._world_size)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_size=reading.batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=reading.device.type == "cuda",
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(stable_seed(reading.seed, epoch, self._rank)),
        )
        for batch in one_sentence(loader):
            report(batch, self._data.bad_images, reading)
            yield batch
