"""Damage that needs to know nothing of a file: bytes cut off, changed, put in, taken out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

HEADER = 4000
"""Half of all damage is done among the first bytes, where the headers are."""


def _place(data: bytes, random: np.random.Generator) -> int:
    reach = len(data) if random.random() < 0.5 else min(len(data), int(random.choice([12, 300, HEADER])))
    return int(random.integers(max(reach, 1)))


def truncated(data: bytes, random: np.random.Generator) -> bytes:
    """Without its end: anything from all but the last byte to nothing at all."""
    return data[:-1] if random.random() < 0.1 else data[: _place(data, random)]


def flipped(data: bytes, random: np.random.Generator) -> bytes:
    """One to five bytes that are something else; often it is one bit of one byte."""
    changed = bytearray(data)
    for _ in range(int(random.choice([1, 1, 1, 2, 5]))):
        changed[_place(data, random)] ^= int(
            random.choice([1, 2, 4, 8, 16, 32, 64, 128, int(random.integers(1, 256))])
        )
    return bytes(changed)


def inserted(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes put in somewhere, or behind the end."""
    at = len(data) if random.random() < 0.2 else _place(data, random)
    return data[:at] + random.bytes(int(random.choice([1, 1, 4, 17, 1000]))) + data[at:]


def deleted(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes taken out somewhere before the end."""
    at = min(_place(data, random), max(len(data) - 2, 0))
    return data[:at] + data[at + int(random.choice([1, 1, 4, 17, 1000])) :]


Damage = Callable[[bytes, np.random.Generator], bytes]

BYTES: dict[str, Damage] = {
    "truncated": truncated,
    "flipped": flipped,
    "inserted": inserted,
    "deleted": deleted,
}
