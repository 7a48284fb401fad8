"""The order of all entries, in the array that holds their values: a whole sort would take three times its room.

Entries whose rank is known hold it negated; the others hold what they are worth, zero or more. So one float32
array says both, and every rank is exact in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.masks.ranking import Keep, Part, map_parts

Values = NDArray[np.float32]

SORTED = 2**22
"""Entries that are sorted at once, about, or a thirty-second of all: for each part all are looked at."""

_SAMPLE = 2**20
"""Entries that say where to cut the others into parts of equal size."""

_FIRST = np.finfo(np.float32).tiny
"""Stands for rank 0, which has no sign to tell it by."""


def sorted_at_once(size: int) -> int:
    """How many of ``size`` entries are sorted at once, about."""
    return min(size, max(SORTED, size // 32))


def count_open(values: Values) -> int:
    """How many entries have no rank yet."""
    return sum(map_parts(lambda part: int(np.count_nonzero(values[part] >= 0)), values))


def rank_others(values: Values, keep: Keep | None, ranked: int) -> int:
    """Put ranks, negated, in the place of the open entries that ``keep`` leaves out: the order of their values.

    The earlier of two equal ones comes first. A rank is the share of all entries that come before.

    Args:
        values: [L, H, N, N], finite; changed in place.
        keep: bool [L, H, N, N], whose entries stay open; None: all get their ranks.
        ranked: how many entries have a rank already; all of them come before.

    Returns:
        How many have one now.
    """
    flat = values.reshape(-1)
    for low, high in _ranges(values, keep):
        found = _between(values, keep, low, high)
        if high == np.nextafter(low, np.float32(np.inf)):  # all the same, and possibly very many
            for places, _ in found:
                ranked = _write(flat, places, ranked)
            continue
        parts = list(found)
        places, numbers = (np.concatenate([part[index] for part in parts]) for index in range(2))
        ranked = _write(flat, places[_order(numbers)], ranked)
    return ranked


def final_ranks(values: Values) -> Values:
    """``values``, changed in place to the ranks, 0 to below 1, once every entry has one."""
    for block in values:
        np.negative(block, out=block)
        block[block == _FIRST] = 0
    return values


def _order(numbers: Values) -> NDArray[np.intp]:
    """``numbers.argsort(kind="stable")`` of numbers from zero on, several times as fast.

    Their bits are ordered as they are. With its place behind its bits each is another integer, which may be sorted
    in any way.
    """
    keys = (numbers + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(2**32 - 1)
    return keys.astype(np.intp)


def _write(flat: Values, places: NDArray[np.intp], ranked: int) -> int:
    """Give the entries at ``places`` the next ranks."""
    ranks = (-np.arange(ranked, ranked + len(places)) / flat.size).astype(np.float32)
    if not ranked and len(ranks):
        ranks[0] = -_FIRST
    flat[places] = ranks
    return ranked + len(places)


def _between(
    values: Values, keep: Keep | None, low: np.float32, high: np.float32
) -> Iterator[tuple[NDArray[np.intp], Values]]:
    """Places and values of the entries from ``low`` to below ``high`` that ``keep`` leaves out, in their order."""

    def look(part: Part) -> tuple[int, NDArray[np.intp], Values]:
        numbers = values[part]
        inside = (numbers >= low) & (numbers < high)
        if keep is not None:
            inside &= ~keep[part]
        places = np.flatnonzero(inside)
        return numbers.size, places, numbers.reshape(-1)[places]

    start = 0
    for size, places, numbers in map_parts(look, values):
        yield places + start, numbers
        start += size


def _ranges(values: Values, keep: Keep | None) -> list[tuple[np.float32, np.float32]]:
    """Ranges of values, ascending: of about as many entries as are sorted at once, or of a single value."""
    step = values.size // _SAMPLE | 1
    sample = values.reshape(-1)[::step]
    chosen = sample >= 0 if keep is None else (sample >= 0) & ~keep.reshape(-1)[::step]
    sample = np.sort(sample[chosen])
    number = -(-len(sample) * step // sorted_at_once(values.size))
    cuts, counts = np.unique(sample[np.arange(1, number) * len(sample) // max(number, 1)], return_counts=True)
    infinity = np.float32(np.inf)
    frequent = np.nextafter(cuts[counts > 1], infinity)
    edges = np.unique(np.concatenate([np.array([0, infinity], dtype=np.float32), cuts, frequent]))
    return list(pairwise(edges))
