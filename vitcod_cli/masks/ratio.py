"""``--method ratio``: the same number of keys in each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.method import MaskMethod
from vitcod_cli.masks.ranking import Attention, Keep, Part, for_each_part, keep_largest
from vitcod_cli.settings import setting

DEFAULT_RATIO = 0.9


@dataclass(frozen=True, kw_only=True)
class Ratio(MaskMethod):
    """Options of the method."""

    name = "ratio"

    ratio: float | None = setting(
        None,
        "ratio, random: share of entries to prune, before prefix tokens are protected.",
        minimum=0,
        maximum=1,
        show_default=str(DEFAULT_RATIO),
    )

    @property
    def share(self) -> float:
        """``ratio``, or its default."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`ratio_mask`."""
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
