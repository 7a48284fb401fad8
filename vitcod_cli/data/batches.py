"""Reading batches of pictures in worker processes, each picture with its own seed."""

from __future__ import annotations

import signal
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitcod_cli import distributed
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.order import own_randomness, seed_all
from vitcod_cli.data.preprocess import Preprocess, Transform
from vitcod_cli.data.workers import DEATHS, default_workers, explain, start_worker
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for broken files, depending on the format."""


Sample = tuple[Tensor | None, int, int, list[tuple[int, str]]]
"""Image (None: unreadable), target, index, and what could not be read on the way: (index, reason)."""


class Batch(NamedTuple):
    """What comes back from a worker."""

    images: Tensor
    targets: Tensor
    indices: Tensor
    missing: int
    bad: list[tuple[int, str]]

    def pin_memory(self) -> Batch:
        """What DataLoader's pinning thread calls."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), *self[2:])


class _Samples(Dataset[Any]):
    """What lives in the workers: keys [n, 2] of (index, seed) to a batch."""

    def __init__(self, data: ImageData, mode: str, transform: Transform, replace_bad: bool) -> None:
        self.data = data
        self.mode = mode
        self.transform = transform
        self.tries = data.bad_images.limit + 2 if replace_bad else 1

    def __getitems__(self, keys: np.ndarray) -> list[Sample]:
        with own_randomness(), warnings.catch_warnings():
            # Pillow warns of odd EXIF and palettes that don't matter here, once in every worker.
            warnings.filterwarnings("ignore", module="PIL")
            return [self._sample(int(index), int(seed)) for index, seed in keys]

    def _sample(self, index: int, seed: int) -> Sample:
        bad: list[tuple[int, str]] = []
        for _ in range(min(self.tries, len(self.data))):
            try:
                image, target = self.data.load(index)
                with image:
                    image.load()
                    image = image if image.mode == self.mode else image.convert(self.mode)
            except _UNREADABLE as error:
                bad.append((index, _reason(error)))
                index = (index + 1) % len(self.data)
                continue
            if seed >= 0:
                seed_all(seed)
            return self.transform(image), target, index, bad
        return None, -1, index, bad


def _reason(error: Exception) -> str:
    """Why, in a few words without the path, which is told beside them."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def collate(samples: list[Sample]) -> Batch:
    """One batch of the samples that could be read."""
    good = [sample for sample in samples if sample[0] is not None]
    images = [sample[0] for sample in good if sample[0] is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0),
        torch.tensor([sample[1] for sample in good], dtype=torch.int64),
        torch.tensor([sample[2] for sample in good], dtype=torch.int64),
        len(samples) - len(good),
        [bad for sample in samples for bad in sample[3]],
    )


class _Keys(Sampler[Any]):
    """The batches of the coming pass; DataLoader asks anew at the start of each."""

    def __init__(self) -> None:
        self.batches: Iterable[np.ndarray] = ()

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)


class BatchReader:
    """Reads any list of batches through one set of workers, which live as long as it does."""

    def __init__(
        self,
        data: ImageData,
        preprocess: Preprocess,
        transform: Transform,
        *,
        workers: int | None,
        device: torch.device,
        replace_bad: bool,
        reporter: Reporter | None,
    ) -> None:
        self._data, self._preprocess, self._device = data, preprocess, device
        self._replace_bad, self._reporter = replace_bad, reporter
        self._keys = _Keys()
        if workers is None:
            workers = 0 if data.in_memory else default_workers()
        self._loader: DataLoader[Any] = DataLoader(
            _Samples(data, preprocess.mode, transform, replace_bad),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            # Its own generator: DataLoader draws a number at each pass, which must not move the global one.
            generator=torch.Generator(),
        )

    def read(self, batches: Iterable[np.ndarray], *, raw: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, targets, indices) of each batch of keys; ``raw`` leaves the images as the workers made them.

        Raises:
            VitcodError: for more unreadable pictures than allowed, or a worker that died.
        """
        self._keys.batches = batches
        for batch in one_sentence(self._loader):
            for index, reason in batch.bad:
                self._data.bad_images.found(
                    self._data.describe(index), reason, replaced=self._replace_bad, reporter=self._reporter
                )
            if self._replace_bad and batch.missing:
                raise VitcodError("The training images can't be read, not one of them; look at --data-path.")
            if len(batch.targets) == 0:
                continue
            images = batch.images if raw else self._preprocess.to_device(batch.images, self._device)
            yield images, batch.targets.to(self._device, non_blocking=True), batch.indices


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


def place(rank: int | None, world: int | None) -> tuple[int, int]:
    """Rank and number of processes, those of the running job where they are None."""
    return (
        distributed.rank() if rank is None else rank,
        distributed.world_size() if world is None else world,
    )


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
