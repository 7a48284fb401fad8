"""``--method random``: what a mask is worth that knows nothing of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.budget import fewest_needed, largest_entries
from vitcod_cli.masks.ranking import Computed, Keep, Part, parts
from vitcod_cli.masks.ratio import Ratio
from vitcod_cli.settings import setting


@dataclass(frozen=True, kw_only=True)
class Random(Ratio):
    """Options of the method."""

    name = "random"
    finds = "number of entries"

    seed: int = setting(0, "random: seed of the draw, below 2**32.", minimum=0, maximum=2**32 - 1)

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`random_mask` and :func:`random_mask_of_sparsity`."""
        shape = attention_map.attention.shape
        if self.sparsity is not None:
            keep = random_mask_of_sparsity(shape, self.sparsity, self.seed, num_prefix_tokens)
            return keep, {"seed": self.seed}
        return random_mask(shape, self.share, self.seed), {"ratio": self.share, "seed": self.seed}


def random_mask(shape: tuple[int, ...], ratio: float, seed: int) -> Keep:
    """Each entry kept with probability 1 - ``ratio``, the same for the same ``seed`` and shape."""
    generator, keep = np.random.default_rng(seed), np.empty(shape, dtype=np.bool_)
    for part in parts(shape):  # one after the other, so that the draw is that of the whole
        keep[part] = generator.random(keep[part].shape) >= ratio
    return keep


def random_mask_of_sparsity(shape: tuple[int, ...], sparsity: float, seed: int, num_prefix_tokens: int) -> Keep:
    """Entries [L, H, N, N] drawn at random, as many as give this sparsity with prefix tokens kept, to the entry.

    Each set of so many entries beside the prefix is as likely as any other. Without a prefix, every row keeps a
    key that is drawn first.

    Raises:
        SparsityError: if a key of every row and the prefix tokens are more than it leaves.
    """
    num_rows, num_keys = shape[-2:]

    def numbers(part: Part) -> NDArray[np.float32]:
        """Of the whole draw, ``default_rng(seed).random(shape, dtype=np.float32)``, the rows of ``part``."""
        head, rows = tuple(index for index in part[:-1] if isinstance(index, int)), part[-1]
        first, end, _ = rows.indices(num_rows) if isinstance(rows, slice) else (rows, rows + 1, 1)
        start = (int(np.ravel_multi_index(head, shape[:-2])) * num_rows + first) * num_keys
        source = np.random.PCG64(seed)
        source.advance(start // 2)  # a step makes two of them
        generator = np.random.Generator(source)
        generator.random(start % 2, dtype=np.float32)
        return generator.random((end - first, num_keys), dtype=np.float32)

    draw = Computed(shape, np.dtype(np.float32), numbers)
    keep, _ = largest_entries(draw, sparsity, fewest_needed(draw, num_prefix_tokens))
    return keep
