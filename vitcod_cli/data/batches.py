"""Reading batches of images in worker processes, each image with its own seed."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from vitcod_cli import distributed
from vitcod_cli.data.bad_images import BadImages, warn
from vitcod_cli.data.decode import reason_of
from vitcod_cli.data.order import Epochs, keys_of, own_randomness, seed_all, shuffled
from vitcod_cli.data.preprocess import Preprocess, Transform
from vitcod_cli.data.reading import Batches, Reading
from vitcod_cli.data.samples import Batch, Sample, collate, deliver, prepared, report
from vitcod_cli.data.workers import DEATHS, default_workers, explain, start_worker
from vitcod_cli.errors import VitcodError


class Indexed(Protocol):
    """What :class:`BatchReader` needs of a data set; see :class:`~vitcod_cli.data.images.ImageData`."""

    in_memory: bool
    num_classes: int
    labelled: bool
    bad_images: BadImages

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image and label."""

    def describe(self, index: int) -> str:
        """A name for messages."""


class _Samples(Dataset[Any]):
    """What lives in the workers: keys [n, 2] of (index, seed) to a batch."""

    def __init__(self, data: Indexed, preprocess: Preprocess, transform: Transform, replace_bad: bool) -> None:
        self.data = data
        self.preprocess = preprocess
        self.transform = transform
        self.tries = data.bad_images.limit + 2 if replace_bad else 1

    def __getitems__(self, keys: np.ndarray) -> list[Sample]:
        with own_randomness(), warnings.catch_warnings():
            # Pillow warns of odd EXIF and palettes that don't matter here, once in every worker.
            warnings.filterwarnings("ignore", module="PIL")
            return [self._sample(int(index), int(seed)) for index, seed in keys]

    def _sample(self, index: int, seed: int) -> Sample:
        bad: list[tuple[str, str]] = []
        for _ in range(min(self.tries, len(self.data))):
            try:
                image, target = self.data.load(index)
                image = prepared(image, self.preprocess)
            except OSError as error:
                bad.append((self.data.describe(index), reason_of(error)))
                index = (index + 1) % len(self.data)
                continue
            if seed >= 0:
                seed_all(seed)
            return Sample(self.transform(image), target, index, bad)
        return Sample(None, index=index, bad=bad)


class _Keys(Sampler[Any]):
    """The batches of the coming pass; DataLoader asks anew at the start of each."""

    def __init__(self) -> None:
        self.batches: Iterable[np.ndarray] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)


class BatchReader:
    """Reads images by index through one set of workers, which live as long as it does.

    The :class:`~vitcod_cli.data.reading.Reader` of every data set that has indices.
    """

    def __init__(self, data: Indexed, reading: Reading) -> None:
        self._data, self._reading = data, reading
        rank, world_size = distributed.rank(), distributed.world_size()
        self._mine = np.arange(len(data))[rank::world_size]
        self.num_images = len(self._mine)
        self._epochs = Epochs(
            len(data),
            batch_size=reading.batch_size,
            repeats=reading.repeats,
            seed=reading.seed,
            rank=rank,
            world_size=world_size,
        )
        self.steps = len(self._epochs)
        self._keys = _Keys()
        workers = reading.workers
        if workers is None:
            workers = 0 if data.in_memory else default_workers()
        self._loader: DataLoader[Any] = DataLoader(
            _Samples(data, reading.preprocess, reading.transform, reading.training),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=reading.device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            # Its own generator: DataLoader draws a number at each pass, which must not move the global one.
            generator=torch.Generator(),
        )
        self._reporter, self._left_to_say = reading.reporter, ""
        if reading.training and self._epochs.wraps:
            self._left_to_say = (
                f"There are only {len(data)} training images for a global batch of "
                f"{reading.batch_size * world_size}: some are shown more than once in each step."
            )

    def one_pass(self) -> Batches:
        """Every image of this process once, in order."""
        return self._read(self._in_batches(self._mine, self._mine))

    def epoch(self, epoch: int, start: int) -> Batches:
        """The batches ``start``, ... of a training epoch; see :class:`~vitcod_cli.data.order.Epochs`."""
        if self._left_to_say:  # only now: where there is no epoch, it doesn't matter
            warn(self._left_to_say, self._reporter)
            self._left_to_say = ""
        return self._read(self._epochs.batches(epoch, start))

    def sample(self, count: int) -> Batches:
        """This process's share of ``count`` images, drawn by the seed from the whole data set."""
        rank, world_size = distributed.rank(), distributed.world_size()
        drawn = shuffled(len(self._data), self._reading.seed)[:count]
        positions = np.arange(len(drawn))
        return self._read(self._in_batches(drawn[rank::world_size], positions[rank::world_size]))

    def _in_batches(self, indices: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        seed = (self._reading.seed, self._reading.draw) if self._reading.random else None
        keys, size = keys_of(indices, positions, seed), self._reading.batch_size
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    def _read(self, batches: Iterable[np.ndarray]) -> Batches:
        """(images, targets, indices) of each batch of keys.

        Raises:
            VitcodError: for more unreadable images than allowed, or a worker that died.
        """
        self._keys.batches = batches
        for batch in one_sentence(self._loader):
            report(batch, self._data.bad_images, self._reading)
            if self._reading.training and batch.missing:
                raise VitcodError("The training images can't be read, not one of them; look at --data-path.")
            if len(batch.targets):
                yield deliver(batch, self._data, self._reading)


def one_sentence(loader: DataLoader[Any]) -> Iterator[Batch]:
    """One pass over ``loader``; the death of a worker becomes a :class:`VitcodError`."""
    try:
        with _quiet_child_deaths():
            iterator = iter(loader)
        yield from iterator
    except DEATHS as error:
        explanation = explain(error) if loader.num_workers else None
        if explanation is None:
            raise
        raise explanation from error


class _quiet_child_deaths:  # noqa: N801
    """Undo DataLoader's SIGCHLD handler, which raises wherever the main process happens to be.

    A dead worker is noticed all the same when its next batch is waited for, where it can be told
    in a sentence.
    """

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        self._before = signal.getsignal(signal.SIGCHLD) if main else None

    def __exit__(self, *_: object) -> None:
        if self._before is not None and signal.getsignal(signal.SIGCHLD) is not self._before:
            signal.signal(signal.SIGCHLD, self._before)
