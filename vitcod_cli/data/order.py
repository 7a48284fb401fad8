"""The order of images and the random seed of each: functions of the seed, the epoch and the position alone.

Nothing here depends on the number of processes or workers, nor on what ran before. That makes
one process see what two see, and a resumed run see what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ROUND = 256


def stable_seed(*values: int) -> int:
    """A seed below 2^63 from whole numbers; neighbours get unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(values)}q", *values), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffled(length: int, *seed: int) -> np.ndarray:
    """The numbers below ``length`` in an order drawn from ``seed``, int64."""
    generator = torch.Generator().manual_seed(stable_seed(*seed))
    order: np.ndarray = torch.randperm(length, generator=generator).numpy()
    return order


def repeated(order: np.ndarray, repeats: int) -> np.ndarray:
    """Each entry ``repeats`` times in a row, cut so that an epoch stays as long as the data set.

    DeiT cuts to a multiple of 256, and so do we; a smaller data set is used whole.
    """
    if repeats == 1:
        return order
    length = len(order) // _ROUND * _ROUND or len(order)
    return np.repeat(order, repeats)[:length]


def keys_of(indices: np.ndarray, positions: np.ndarray, seed: tuple[int, ...] | None) -> np.ndarray:
    """int64 [n, 2]: what a worker is told of each image, its index and its own seed (-1: it needs none)."""
    keys = np.full((len(indices), 2), -1, dtype=np.int64)
    keys[:, 0] = indices
    if seed is not None:
        keys[:, 1] = [stable_seed(*seed, position) for position in positions.tolist()]
    return keys


class Epochs:
    """The batches of a training run, as keys for the workers.

    The order of an epoch is one list for all processes, repeats of an image side by side as in
    DeiT's repeated augmentation; step g takes its g-th ``batch_size * world_size`` entries and process r
    of these r, r + world_size, ... Each entry has its own augmentation. The last, incomplete step is
    dropped; a data set smaller than one step is repeated to fill it (``wraps``).
    """

    def __init__(
        self, length: int, *, batch_size: int, repeats: int, seed: int, rank: int, world_size: int
    ) -> None:
        self._length, self._repeats, self._seed = length, repeats, seed
        self._global_batch, self._rank, self._world_size = batch_size * world_size, rank, world_size
        entries = len(repeated(np.empty(length, dtype=np.int8), repeats))
        self.wraps = entries < self._global_batch
        self._steps = max(1, entries // self._global_batch)

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """This process's keys for the steps ``start``, ... of an epoch, int64 [batch, 2] each."""
        order = repeated(shuffled(self._length, self._seed, epoch), self._repeats)
        if self.wraps:
            order = np.resize(order, self._global_batch)
        positions = np.arange(len(order))
        for step in range(start, len(self)):
            first = step * self._global_batch
            mine = slice(first + self._rank, first + self._global_batch, self._world_size)
            yield keys_of(order[mine], positions[mine], (self._seed, epoch))


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global generators (Python's, NumPy's, torch's on the CPU) as they were before the block."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(generator)


def seed_all(seed: int) -> None:
    """Seed the generators that transforms draw from (not the accelerator's, which torch.manual_seed would)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
