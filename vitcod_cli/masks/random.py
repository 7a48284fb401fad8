"""``--method random``: what a mask is worth that knows nothing of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.ranking import Keep, parts
from vitcod_cli.masks.ratio import Ratio
from vitcod_cli.settings import setting


@dataclass(frozen=True, kw_only=True)
class Random(Ratio):
    """Options of the method."""

    name = "random"

    seed: int = setting(0, "random: seed of the draw, below 2**32.", minimum=0, maximum=2**32 - 1)

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`random_mask`."""
        shape = attention_map.attention.shape
        return random_mask(shape, self.share, self.seed), {"ratio": self.share, "seed": self.seed}


def random_mask(shape: tuple[int, ...], ratio: float, seed: int) -> Keep:
    """Each entry kept with probability 1 - ``ratio``, the same for the same ``seed`` and shape."""
    generator, keep = np.random.default_rng(seed), np.empty(shape, dtype=np.bool_)
    for part in parts(shape):  # one after the other, so that the draw is that of the whole
        keep[part] = generator.random(keep[part].shape) >= ratio
    return keep
