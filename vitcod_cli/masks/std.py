"""``--method std``: keys well above the mean of their row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.method import MaskMethod
from vitcod_cli.masks.ranking import Attention, Keep, Part, for_each_part
from vitcod_cli.settings import setting

DEFAULT_COEF = 0.9


@dataclass(frozen=True, kw_only=True)
class Std(MaskMethod):
    """Options of the method."""

    name = "std"
    protects_prefix = False  # as published

    std_coef: float | None = setting(
        None,
        "std: how many standard deviations above the mean of its row a key must be.",
        minimum=-1e6,
        maximum=1e6,
        show_default=str(DEFAULT_COEF),
    )

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`std_mask`."""
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
