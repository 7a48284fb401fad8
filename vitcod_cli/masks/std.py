"""``--method std``: keys well above the mean of their row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.budget import fewest_needed, largest_entries
from vitcod_cli.masks.method import Exact
from vitcod_cli.masks.ranking import Attention, Computed, Keep, Part, for_each_part
from vitcod_cli.settings import setting

DEFAULT_COEF = 0.9


@dataclass(frozen=True, kw_only=True)
class Std(Exact):
    """Options of the method."""

    name, own_option, finds = "std", "std_coef", "coefficient"
    protects_prefix = False  # as published

    std_coef: float | None = setting(
        None,
        "std: how many standard deviations above the mean of its row a key must be, instead of --sparsity.",
        minimum=-1e6,
        maximum=1e6,
        show_default=str(DEFAULT_COEF),
    )

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`std_mask` and :func:`std_mask_of_sparsity`."""
        if self.sparsity is not None:
            keep, found = std_mask_of_sparsity(attention_map.attention, self.sparsity, num_prefix_tokens)
            return keep, {} if found is None else {"std_coef": found}
        coef = DEFAULT_COEF if self.std_coef is None else self.std_coef
        return std_mask(attention_map.attention, coef), {"std_coef": coef}


def std_mask(attention: Attention, coef: float) -> Keep:
    """Per row, prune the keys below mean + ``coef`` * population standard deviation.

    Computed in the map's own precision, as published. Rows may come out empty: see
    :func:`~vitcod_cli.masks.prefix.fill_empty_rows`.
    """
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(part: Part) -> None:
        rows = attention[part]
        mean, std = rows.mean(axis=-1, keepdims=True), rows.std(axis=-1, keepdims=True)
        keep[part] = rows >= mean + coef * std

    for_each_part(fill, attention)
    return keep


def std_mask_of_sparsity(
    attention: Attention, sparsity: float, num_prefix_tokens: int
) -> tuple[Keep, float | None]:
    """The keys that are most standard deviations above the mean of their row, as many as give this sparsity.

    Reached to the entry, the later keys kept where they are as many deviations above. Prefix tokens are kept if
    there are any; if not, every row keeps its largest key.

    Args:
        attention: [L, H, N, N].

    Returns:
        The mask [L, H, N, N], and the coefficient of :func:`std_mask` that it comes to; None where nothing
        but the necessary is kept.

    Raises:
        SparsityError: if a key of every row and the prefix tokens are more than it leaves.
    """
    means, stds = (np.empty((*attention.shape[:-1], 1), dtype=attention.dtype) for _ in range(2))

    def measure(part: Part) -> None:
        rows = attention[part]
        rows.mean(axis=-1, keepdims=True, out=means[part])
        rows.std(axis=-1, keepdims=True, out=stds[part])

    def deviate(part: Part) -> Attention:
        rows = attention[part]
        above = np.zeros_like(rows)  # all the same: none is above the mean
        return np.divide(rows - means[part], stds[part], out=above, where=stds[part] > 0)

    for_each_part(measure, attention)
    deviations = Computed(attention.shape, attention.dtype, deviate)
    return largest_entries(deviations, sparsity, fewest_needed(deviations, num_prefix_tokens))
