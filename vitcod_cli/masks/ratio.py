"""``--method ratio``: the same number of keys in each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.budget import budget, fewest_entries, out_of_reach
from vitcod_cli.masks.method import Exact
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ranking import Attention, Keep, Part, for_each_part, keep_largest, map_parts
from vitcod_cli.settings import setting

DEFAULT_RATIO = 0.9


@dataclass(frozen=True, kw_only=True)
class Ratio(Exact):
    """Options of the method."""

    name, own_option, finds = "ratio", "ratio", "number of keys"

    ratio: float | None = setting(
        None,
        "ratio, random: share of entries to prune before prefix tokens are protected, instead of --sparsity.",
        minimum=0,
        maximum=1,
        show_default=str(DEFAULT_RATIO),
    )

    @property
    def share(self) -> float:
        """``ratio``, or its default."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`ratio_mask` and :func:`ratio_mask_of_sparsity`."""
        if self.sparsity is not None:
            return ratio_mask_of_sparsity(attention_map.attention, self.sparsity, num_prefix_tokens), {}
        return ratio_mask(attention_map.attention, self.share), {"ratio": self.share}


def ratio_mask(attention: Attention, ratio: float) -> Keep:
    """Per row, prune the keys whose ascending rank is below ``ratio * N``."""
    num_keys = attention.shape[-1]
    kept = num_keys - np.count_nonzero(np.arange(num_keys) < ratio * num_keys)
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(part: Part) -> None:
        rows = attention[part]
        keep[part] = keep_largest(rows, np.sort(rows, axis=-1), np.full(len(rows), kept))

    for_each_part(fill, attention)
    return keep


def ratio_mask_of_sparsity(attention: Attention, sparsity: float, num_prefix_tokens: int) -> Keep:
    """As many keys in each row, prefix tokens kept, as give this sparsity to the entry.

    What is over after as many for all goes to the rows whose next key is largest, one each, to the later rows
    where they tie.

    Args:
        attention: [L, H, N, N].
        sparsity: share of pruned entries among all, prefix included.
        num_prefix_tokens: tokens whose rows and columns are kept.

    Raises:
        SparsityError: if a key of every row and the prefix tokens are more than it leaves.
    """
    (num_rows, num_keys), prefix = attention.shape[-2:], num_prefix_tokens
    whole = attention.size // num_rows * prefix  # entries of the rows of prefix tokens
    rows_left = attention.size // num_keys - whole // num_keys
    wanted, fewest = budget(attention.size, sparsity), fewest_entries(attention.shape, prefix)
    if wanted < fewest:
        raise out_of_reach(sparsity, fewest, attention.size)
    left = wanted - whole
    counts = np.full(attention.shape[:-1], num_keys, dtype=np.intp)
    if rows_left:
        each, over = divmod(left, rows_left)
        counts[..., prefix:] = each
        if over:
            following = np.concatenate(
                list(map_parts(lambda part: np.sort(_ranked(attention, part, prefix))[:, -1 - each], attention))
            ).reshape(attention.shape[:-1])[..., prefix:]
            more = np.argsort(following, axis=None, kind="stable")[-over:]
            counts[..., prefix:][np.unravel_index(more, following.shape)] += 1
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(part: Part) -> None:
        rows = _ranked(attention, part, prefix)
        keep[part] = keep_largest(rows, np.sort(rows, axis=-1), counts[part])

    for_each_part(fill, attention)
    return keep_prefix(keep, prefix)


def _ranked(attention: Attention, part: Part, prefix: int) -> Attention:
    """Rows [n, N] in which the columns of prefix tokens come first."""
    rows = attention[part].copy()
    rows[:, :prefix] = np.inf
    return rows
