"""Keeping the largest keys of each row, block by block; what several methods of making masks share."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keep = NDArray[np.bool_]
Attention = NDArray[np.floating[Any]]


def for_each_block(function: Callable[[Any], None], attention: Attention) -> None:
    """Call ``function`` with an index of each block, in threads: numpy's loops let go of the lock."""
    if attention.ndim < 4:
        return function(...)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(function, range(len(attention))))  # list() passes on what a thread raised
    return None


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
