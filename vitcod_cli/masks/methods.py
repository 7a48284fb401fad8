"""Fixed attention masks from a mean attention map (HPCA 2023, section IV-A), in numpy alone.

A map is ``[..., N, N]`` (blocks and heads first; query rows, key columns; each row sums to 1). A
mask is bool of the same shape and says ``keep``: True = this query may look at this key. Where
keys of a row tie, they rank as a stable ascending sort ranks them: the later key is the larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.info import find_info_cut, info_mask, info_mask_of_sparsity
from vitcod_cli.masks.ranking import Attention, Keep, for_each_block, keep_largest

__all__ = [
    "check_rows",
    "fill_empty_rows",
    "find_info_cut",
    "info_mask",
    "info_mask_of_sparsity",
    "keep_prefix",
    "random_mask",
    "ratio_mask",
    "sparsity_of",
    "std_mask",
]


def ratio_mask(attention: Attention, ratio: float) -> Keep:
    """Per row, prune the keys whose ascending rank is below ``ratio * N``."""
    num_keys = attention.shape[-1]
    kept = num_keys - np.count_nonzero(np.arange(num_keys) < ratio * num_keys)
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(block: Any) -> None:
        rows = attention[block]
        keep[block] = keep_largest(rows, np.sort(rows, axis=-1), np.full(rows.shape[:-1], kept))

    for_each_block(fill, attention)
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
        keep[empty] = keep_largest(rows, np.sort(rows, axis=-1), np.ones(count, dtype=np.intp))
    return keep, count


def sparsity_of(keep: Keep) -> float:
    """The share of pruned entries among all entries, prefix rows and columns included."""
    return 1 - np.count_nonzero(keep) / keep.size


def check_rows(attention: Attention, flag: str = "--attn-map") -> None:
    """Raise a VitcodError unless every row of the map sums to 1, within what float32 sums are off."""
    sums = attention.sum(axis=-1)
    off = np.abs(sums - 1)
    if not off.max() <= 1e-3:
        raise VitcodError(
            f"{flag} has a row that sums to {sums.flat[off.argmax()]:.4g}, not 1, so it isn't a mean attention "
            "map; make one with vitcod dump-attn."
        )
