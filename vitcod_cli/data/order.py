"""Which picture comes when, and what luck it has: functions of the seed, the epoch and the position alone.

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
