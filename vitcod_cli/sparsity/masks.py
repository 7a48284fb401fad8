"""Fixed attention masks from a mean attention map (HPCA 2023, section IV-A), in numpy alone.

A map is ``[..., N, N]`` (blocks and heads first; query rows, key columns; each row sums to 1). A
mask is bool of the same shape and says ``keep``: True = this query may look at this key. Where
keys of a row tie, they rank as a stable ascending sort ranks them: the later key is the larger.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.errors import VitcodError

Keep = NDArray[np.bool_]
Attention = NDArray[np.floating[Any]]


def info_mask(attention: Attention, info_cut: float) -> Keep:
    """The paper's mask: per row, the largest keys whose sum reaches ``info_cut``, and one key more.

    The sum runs in float64 from the largest key down; a row that never reaches the cut (its sum
    falls short of 1 by rounding) keeps every key. The one key more is what the published code does.
    """
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(block: Any) -> None:
        rows = attention[block]
        ascending = np.sort(rows, axis=-1)
        sums = _running_sums(ascending)[..., :-1]
        reached = np.count_nonzero(sums < info_cut, axis=-1) + int(info_cut > 0)
        keep[block] = _keep_largest(rows, ascending, np.minimum(reached + 1, rows.shape[-1]))

    _for_each_block(fill, attention)
    return keep


def ratio_mask(attention: Attention, ratio: float) -> Keep:
    """Per row, prune the keys whose ascending rank is below ``ratio * N``."""
    num_keys = attention.shape[-1]
    kept = num_keys - np.count_nonzero(np.arange(num_keys) < ratio * num_keys)
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(block: Any) -> None:
        rows = attention[block]
        keep[block] = _keep_largest(rows, np.sort(rows, axis=-1), np.full(rows.shape[:-1], kept))

    _for_each_block(fill, attention)
    return keep


def std_mask(attention: Attention, coef: float) -> Keep:
    """Per row, prune the keys below mean + ``coef`` * population standard deviation.

    Computed in the map's own precision, as published. Rows may come out empty: see
    :func:`fill_empty_rows`.
    """
    mean = attention.mean(axis=-1, keepdims=True)
    std = attention.std(axis=-1, keepdims=True)
    keep: Keep = attention >= mean + coef * std
    return keep


def random_mask(shape: tuple[int, ...], ratio: float, seed: int) -> Keep:
    """Each entry kept with probability 1 - ``ratio``, the same for the same ``seed`` and shape."""
    return np.random.default_rng(seed).random(shape) >= ratio


def keep_prefix(keep: Keep, num_prefix_tokens: int) -> Keep:
    """A copy in which the first tokens (class, distillation, registers) see and are seen by all."""
    keep = keep.copy()
    keep[..., :num_prefix_tokens, :] = True
    keep[..., :, :num_prefix_tokens] = True
    return keep


def fill_empty_rows(keep: Keep, attention: Attention) -> tuple[Keep, int]:
    """Give every row without a key its largest one, because an empty row has no softmax.

    Returns:
        The mask (a copy if anything changed) and the number of rows that were empty.
    """
    empty = ~keep.any(axis=-1)
    count = int(np.count_nonzero(empty))
    if count:
        keep = keep.copy()
        rows = attention[empty]
        keep[empty] = _keep_largest(rows, np.sort(rows, axis=-1), np.ones(count, dtype=np.intp))
    return keep, count


def sparsity_of(keep: Keep) -> float:
    """The share of pruned entries among all entries, prefix rows and columns included."""
    return 1 - np.count_nonzero(keep) / keep.size


def find_info_cut(attention: Attention, sparsity: float, num_prefix_tokens: int) -> float:
    """The cut with which :func:`info_mask`, its prefix kept, comes as near to ``sparsity`` as any can.

    Exact: of a row in descending order, the key that p others go before (p >= 1) is pruned if and
    only if the first p - 1 already reach the cut. These sums are the only cuts at which the sparsity
    steps, and the one sought is an order statistic of them. Of all cuts that give the same mask, the
    one with the fewest decimals is returned.

    Args:
        attention: [L, H, N, N].
        sparsity: wanted :func:`sparsity_of` of the mask, 0 to 1.
        num_prefix_tokens: tokens whose rows and columns will be kept.

    Raises:
        VitcodError: if no cut between 0 and 1 gives this sparsity to two decimals.
    """
    steps = _steps_outside_the_prefix(attention, num_prefix_tokens)
    total, wanted = attention.size, round(sparsity * attention.size)
    most, least = np.count_nonzero(steps >= 0), np.count_nonzero(steps >= 1)
    if not least / total - 0.005 <= sparsity <= most / total + 0.005:
        raise VitcodError(
            f"--sparsity {sparsity:g} can't be reached by the info method on this map, only {least / total:.4f} "
            f"to {most / total:.4f} (a key of every row and all prefix tokens are kept); choose one in this range."
        )
    if wanted <= least:
        return 1.0
    if wanted >= most:
        return 0.0
    # A cut prunes the entries whose step is not below it: we want the wanted-th largest step.
    place = steps.size - wanted
    steps.partition(place)
    cut, below, above = float(steps[place]), steps[:place], steps[place:]
    # Where steps tie at this cut it prunes some too many, and a higher cut some too few.
    if np.count_nonzero(above == cut) < np.count_nonzero(below == cut):
        return _short_decimal(cut, float(above[above > cut].min(initial=1.0)))
    return _short_decimal(float(below[below < cut].max(initial=-1.0)), cut)


def check_rows(attention: Attention, flag: str = "--attn-map") -> None:
    """Raise a VitcodError unless every row of the map sums to 1, within what float32 sums are off."""
    sums = attention.sum(axis=-1)
    off = np.abs(sums - 1)
    if not off.max() <= 1e-3:
        raise VitcodError(
            f"{flag} has a row that sums to {sums.flat[off.argmax()]:.4g}, not 1, so it isn't a mean attention "
            "map; make one with vitcod dump-attn."
        )


def _for_each_block(function: Callable[[Any], None], attention: Attention) -> None:
    """Call ``function`` with an index of each block, in threads: numpy's loops let go of the lock."""
    if attention.ndim < 4:
        return function(...)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        # list() passes on what a thread raised.
        list(pool.map(function, range(len(attention))))
    return None


def _running_sums(ascending: Attention) -> NDArray[np.float64]:
    """[..., N]: at place p the float64 sum of the p + 1 largest keys of the row, added one by one."""
    descending = ascending[..., ::-1].astype(np.float64)
    sums: NDArray[np.float64] = np.cumsum(descending, axis=-1, out=descending)
    return sums


def _keep_largest(attention: Attention, ascending: Attention, counts: NDArray[np.intp]) -> Keep:
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


def _steps_outside_the_prefix(attention: Attention, num_prefix_tokens: int) -> NDArray[np.float64]:
    """For every entry of the rows after the prefix, the largest cut that prunes it; -1 = never pruned."""
    attention = attention[..., num_prefix_tokens:, :]
    steps = np.full(attention.shape, -1.0)

    def fill(block: Any) -> None:
        rows, row_steps = attention[block], steps[block]
        row_steps[..., 1:2] = 0
        row_steps[..., 2:] = _running_sums(np.sort(rows, axis=-1))[..., :-2]
        for column in range(num_prefix_tokens):
            value = rows[..., column, None]
            place = np.count_nonzero(rows > value, axis=-1)
            place += np.count_nonzero(rows[..., column + 1 :] == value, axis=-1)
            np.put_along_axis(row_steps, place[..., None], -1.0, axis=-1)

    _for_each_block(fill, attention)
    return steps.ravel()


def _short_decimal(low: float, high: float) -> float:
    """The number with the fewest decimals in the interval that excludes ``low`` and includes ``high``."""
    for digits in range(1, 18):
        candidate = float(f"{high:.{digits}f}")
        if low < candidate <= high:
            return candidate
    return high
