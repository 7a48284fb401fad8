"""Looking at a map part by part, and ranking its entries; what several methods of making masks share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.arrays import release_pages
from vitcod_cli.runtime import usable_cores

Keep = NDArray[np.bool_]
Attention = NDArray[np.floating[Any]]
Part = tuple[int | slice, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Computed:
    """Values that are computed whenever a part of them is looked at, and never all there.

    Attributes:
        shape: (..., N, N).
        dtype: of floats.
        compute: gives the values [n, N] of a part.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    compute: Callable[[Part], NDArray[np.floating[Any]]]

    def __getitem__(self, part: Part) -> NDArray[np.floating[Any]]:
        return self.compute(part)


PART = 2**16
"""Most entries of a part: what is computed of it stays in the cache, and in memory that malloc has at hand."""

_DIGIT = 16
"""Bits that :func:`nth_largest` learns in a pass."""


def parts(shape: tuple[int, ...]) -> list[Part]:
    """Indices that cut an array [..., N, N] into parts [n, N], some rows of one head each, in its order."""
    rows, keys = shape[-2:]
    size = -(-rows // -(-rows * keys // PART))
    return [(*head, slice(row, row + size)) for head in np.ndindex(shape[:-2]) for row in range(0, rows, size)]


def map_parts(function: Callable[[Part], T], array: NDArray[Any] | Computed) -> Iterator[T]:
    """What ``function`` makes of the index of each part of ``array``, in order; in threads.

    numpy's loops let go of the lock. The pages of a memory-mapped ``array`` are released at the end.
    """
    with ThreadPoolExecutor(min(usable_cores(), 8)) as pool:
        yield from pool.map(function, parts(array.shape))
    if not isinstance(array, Computed):
        release_pages(array)


def for_each_part(function: Callable[[Part], object], array: NDArray[Any] | Computed) -> None:
    """Call ``function`` with the index of each part of ``array``, as :func:`map_parts` does."""
    deque(map_parts(function, array), maxlen=0)


def keep_largest(attention: Attention, ascending: Attention, counts: NDArray[np.intp]) -> Keep:
    """Keep the ``counts`` [...] largest keys of each row of ``attention`` [..., N], given it sorted too."""
    num_keys = attention.shape[-1]
    first = np.minimum(num_keys - counts, num_keys - 1)[..., None]
    keep: Keep = attention >= np.take_along_axis(ascending, first, axis=-1)
    # Comparing with the smallest kept value is far cheaper than ranking; only ties need ranks.
    wrong = np.count_nonzero(keep, axis=-1) != counts
    if wrong.any():
        order = np.argsort(attention[wrong], axis=-1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(num_keys)[None], axis=-1)
        keep[wrong] = ranks >= num_keys - counts[wrong][:, None]
    return keep


def nth_largest(array: Attention | Computed, left_out: Keep, count: int) -> np.floating[Any]:
    """The ``count``-th largest of the entries of ``array`` [..., N, N] that are not ``left_out``.

    Exact: each pass counts, and learns 16 more bits of it, so that nothing is copied.
    """
    bits = 8 * array.dtype.itemsize
    integer, known = np.dtype(f"i{array.dtype.itemsize}").type, 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        # The first digit has the sign, so it counts from below 0; the others continue what is known.
        base = -(2 ** (_DIGIT - 1)) if shift == bits - _DIGIT else known << _DIGIT

        def digits(part: Part, shift: int = shift, base: int = base) -> NDArray[np.intp]:
            order = _ordered(array[part][~left_out[part]].view(integer)) >> integer(shift)
            order = order[(order >= base) & (order < base + 2**_DIGIT)].astype(np.intp)
            return np.bincount(order - base, minlength=2**_DIGIT)

        counts: NDArray[np.intp] = sum(map_parts(digits, array), np.zeros(2**_DIGIT, dtype=np.intp))
        at_least = counts[::-1].cumsum()[::-1]
        digit = int(np.flatnonzero(at_least >= count)[-1])
        count -= int(at_least[digit] - counts[digit])
        known = base + digit
    bits_of_it = _ordered(np.array([known], dtype=integer))
    value: np.floating[Any] = bits_of_it.view(array.dtype)[0]
    return value


def _ordered(numbers: NDArray[np.signedinteger[Any]]) -> NDArray[np.signedinteger[Any]]:
    """The bits of floats as integers that are ordered as the floats are; the same function leads back."""
    info = np.iinfo(numbers.dtype)
    return numbers ^ ((numbers >> (info.bits - 1)) & info.max)
