"""Masks of a budget: what each of them keeps, whether the budget is enough for it, and spending the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.arrays import release_pages
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ranking import Keep, Part, for_each_part, map_parts, nth_largest, parts

Importance = NDArray[np.floating[Any]]


def check_budget(necessary: Keep, wanted: int, sparsity: float) -> int:
    """How many entries may be kept beyond the ``necessary`` ones, of ``wanted`` in all.

    Raises:
        SparsityError: if the necessary ones are too many.
    """
    more = wanted - int(np.count_nonzero(necessary))
    if more < 0:
        raise SparsityError(
            f"--sparsity {sparsity:g} can't be reached: a key of every row and all prefix tokens are kept, which "
            f"leaves {np.count_nonzero(~necessary) / necessary.size:.4f} at most."
        )
    return more


def necessary_entries(importance: Importance, num_prefix_tokens: int) -> Keep:
    """What every mask keeps: rows and columns of prefix tokens, and the best entry of each row."""
    keep = np.zeros(importance.shape, dtype=np.bool_)
    last = importance.shape[-1] - 1

    def fill(part: Part) -> None:
        best = last - importance[part][:, ::-1].argmax(axis=-1)
        np.put_along_axis(keep[part], best[:, None], True, axis=-1)

    for_each_part(fill, importance)
    return keep_prefix(keep, num_prefix_tokens)


def largest_entries(values: Importance, sparsity: float, num_prefix_tokens: int) -> Keep:
    """Keep the largest of all ``values`` [L, H, N, N], beside what every mask keeps; of equal ones the later.

    Args:
        sparsity: share of pruned entries among all, prefix included; reached to the entry.
        num_prefix_tokens: tokens whose rows and columns are kept.

    Raises:
        SparsityError: if the entries that must be kept are more than this sparsity leaves.
    """
    keep = necessary_entries(values, num_prefix_tokens)
    more = check_budget(keep, budget(keep.size, sparsity), sparsity)
    if more:
        _keep_largest_of_all(keep, values, more)
    return keep


def budget(size: int, sparsity: float) -> int:
    """How many of ``size`` entries may be kept."""
    return round((1 - sparsity) * size)


def _keep_largest_of_all(keep: Keep, importance: Importance, count: int) -> None:
    """Set ``keep`` at the ``count`` largest of the entries that it leaves out, the later ones where they tie."""
    smallest = nth_largest(importance, keep, count)

    def fill(part: Part) -> int:
        above = importance[part] > smallest
        new = np.count_nonzero(above & ~keep[part])
        keep[part] |= above
        return int(new)

    count -= sum(map_parts(fill, importance))
    for part in reversed(parts(importance.shape)):
        ties = np.argwhere((importance[part] == smallest) & ~keep[part])[-count:]
        keep[part][tuple(ties.T)] = True
        count -= len(ties)
        if not count:
            break
    release_pages(importance)
