"""Masks of a budget: what each of them keeps, whether the budget is enough for it, and spending the rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.arrays import release_pages
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ranking import Computed, Keep, Part, for_each_part, map_parts, nth_largest, parts

Importance = NDArray[np.floating[Any]]


def worth_of(importance: Importance) -> NDArray[np.float64]:
    """From the share of entries that are worth less to something like the damage of pruning: few do much."""
    worth: NDArray[np.float64] = 1 / (1.001 - importance.astype(np.float64))
    return worth


def check_budget(necessary: Keep, wanted: int, sparsity: float) -> int:
    """How many entries may be kept beyond the ``necessary`` ones, of ``wanted`` in all.

    Raises:
        SparsityError: if the necessary ones are too many.
    """
    count = int(np.count_nonzero(necessary))
    if count > wanted:
        raise out_of_reach(sparsity, count, necessary.size)
    return wanted - count


def out_of_reach(sparsity: float, fewest: int, size: int) -> SparsityError:
    """The error for a sparsity that leaves fewer entries than the ``fewest`` of ``size`` that any mask keeps."""
    return SparsityError(
        f"--sparsity {sparsity:g} can't be reached: a key of every row and all prefix tokens are kept, which "
        f"leaves {most_sparsity(fewest, size):.4f} at most."
    )


def check_reachable(shape: tuple[int, ...], num_prefix_tokens: int, sparsity: float) -> None:
    """Before there is a map: that the prefix tokens and a key of every row leave as much to prune.

    Args:
        shape: of the mask, [L, H, N, N].

    Raises:
        SparsityError: if no mask has this sparsity. A map may still be one that can't give it.
    """
    size, fewest = math.prod(shape), fewest_entries(shape, num_prefix_tokens)
    if budget(size, sparsity) < fewest:
        raise out_of_reach(sparsity, fewest, size)


def most_sparsity(fewest: int, size: int) -> float:
    """What can be asked for where ``fewest`` of ``size`` entries are kept in any case.

    To four decimals, rounded down: the number that is told must be one that can be reached.
    """
    return math.floor((size - fewest) * 10_000 / size) / 10_000


def fewest_entries(shape: tuple[int, ...], num_prefix_tokens: int) -> int:
    """How many entries of [L, H, N, N] a mask keeps at least: the prefix, and a key of every row."""
    num_rows, num_keys = shape[-2:]
    rows_left = num_rows - num_prefix_tokens
    per_head = num_prefix_tokens * num_keys + rows_left * max(num_prefix_tokens, 1)
    return math.prod(shape[:-2]) * per_head


def necessary_entries(importance: Importance | Computed, num_prefix_tokens: int) -> Keep:
    """What an allocated mask keeps: rows and columns of prefix tokens, and the best entry of each row."""
    keep = np.zeros(importance.shape, dtype=np.bool_)
    last = importance.shape[-1] - 1

    def fill(part: Part) -> None:
        best = last - importance[part][:, ::-1].argmax(axis=-1)
        np.put_along_axis(keep[part], best[:, None], True, axis=-1)

    for_each_part(fill, importance)
    return keep_prefix(keep, num_prefix_tokens)


def necessary_with_floor(
    importance: Importance, sparsity: float, num_prefix_tokens: int, floor: FloorSettings
) -> Keep:
    """:func:`necessary_entries`, and the most important others of each head (or block) that keeps too few.

    Args:
        importance: [L, H, N, N].
        sparsity: of the mask that they are to be a part of.

    Raises:
        SparsityError: if they are more than this sparsity leaves.
    """
    keep = necessary_entries(importance, num_prefix_tokens)
    wanted = budget(keep.size, sparsity)
    check_budget(keep, wanted, sparsity)
    if floor.min_density is None:
        return keep
    for place in np.ndindex(keep.shape[: 2 if floor.per == "head" else 1]):
        part = keep[place]
        least = math.ceil(round(floor.min_density * part.size, 6))  # 0.1 * 30 is a little more than 3
        missing = least - int(np.count_nonzero(part))
        if missing > 0:
            _keep_largest_of_all(part, importance[place], missing)
    count = int(np.count_nonzero(keep))
    if count > wanted:
        raise SparsityError(
            f"--sparsity {sparsity:g} can't be reached with --min-density {floor.min_density:g}: with what every "
            f"{floor.per} keeps, {most_sparsity(count, keep.size):.4f} is the most; lower one of them."
        )
    return keep


def fewest_needed(values: Importance | Computed, num_prefix_tokens: int) -> Keep:
    """Rows and columns of prefix tokens; without any, the best entry of each row, which would be empty else."""
    if not num_prefix_tokens:
        return necessary_entries(values, 0)
    return keep_prefix(np.zeros(values.shape, dtype=np.bool_), num_prefix_tokens)


def largest_entries(values: Importance | Computed, sparsity: float, necessary: Keep) -> tuple[Keep, float | None]:
    """Keep the largest of all ``values`` [L, H, N, N], beside the ``necessary`` ones; of equal ones the later.

    Args:
        sparsity: share of pruned entries among all, prefix included; reached to the entry.
        necessary: bool [L, H, N, N], what is kept in any case; changed in place.

    Returns:
        The mask, and the smallest value that is kept for being large; None where nothing but the necessary is.

    Raises:
        SparsityError: if the necessary entries are more than this sparsity leaves.
    """
    more = check_budget(necessary, budget(necessary.size, sparsity), sparsity)
    return necessary, _keep_largest_of_all(necessary, values, more) if more else None


def budget(size: int, sparsity: float) -> int:
    """How many of ``size`` entries may be kept."""
    return round((1 - sparsity) * size)


def _keep_largest_of_all(keep: Keep, importance: Importance | Computed, count: int) -> float:
    """Set ``keep`` at the ``count`` largest of the entries that it leaves out, the later ones where they tie.

    Returns the smallest of them.
    """
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
    if not isinstance(importance, Computed):
        release_pages(importance)
    return float(str(smallest))  # the shortest decimal that is this number in its own precision
