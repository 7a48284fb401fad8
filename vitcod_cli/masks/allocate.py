"""Spending a budget of entries over all blocks, heads and rows together: ``gen-mask --allocate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.arrays import release_pages
from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.method import DEFAULT_SPARSITY, MaskMethod
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ranking import Keep, Part, for_each_part, map_parts, nth_largest, parts
from vitcod_cli.settings import setting

Importance = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Allocated(MaskMethod):
    """Options of the method; ``--sparsity`` is that of the info method, whose place it takes."""

    name = "allocated"

    allocate: bool = setting(
        False,
        "Spend the --sparsity where it does the least damage, over all blocks, heads and rows together, instead "
        "of the same info cut everywhere; needs a map from dump-attn --importance-images.",
    )
    target: float = DEFAULT_SPARSITY

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`allocated_mask`."""
        if attention_map.importance is None:
            raise VitcodError(
                "--allocate needs to know what every entry is worth, and --attn-map doesn't say it; make the map "
                "again with vitcod dump-attn --importance-images 256."
            )
        return allocated_mask(attention_map.importance, self.target, num_prefix_tokens), {}


def allocated_mask(importance: Importance, sparsity: float, num_prefix_tokens: int) -> Keep:
    """Keep the entries of the whole model that are worth most.

    Prefix rows and columns are kept, and the best entry of every row. Where entries tie, the later is kept.

    Args:
        importance: [L, H, N, N], larger for an entry that is worth more.
        sparsity: share of pruned entries among all, prefix included; reached to the entry.
        num_prefix_tokens: tokens whose rows and columns are kept.

    Raises:
        VitcodError: if the entries that must be kept are more than this sparsity leaves.
    """
    keep = necessary_entries(importance, num_prefix_tokens)
    wanted = round((1 - sparsity) * keep.size)
    more = wanted - int(np.count_nonzero(keep))
    if more < 0:
        raise VitcodError(
            f"--sparsity {sparsity:g} can't be reached: a key of every row and all prefix tokens are kept, which "
            f"leaves {np.count_nonzero(~keep) / keep.size:.4f} at most."
        )
    if more:
        _keep_largest_of_all(keep, importance, more)
    return keep


def necessary_entries(importance: Importance, num_prefix_tokens: int) -> Keep:
    """What every mask keeps: rows and columns of prefix tokens, and the best entry of each row."""
    keep = np.zeros(importance.shape, dtype=np.bool_)
    last = importance.shape[-1] - 1

    def fill(part: Part) -> None:
        best = last - importance[part][:, ::-1].argmax(axis=-1)
        np.put_along_axis(keep[part], best[:, None], True, axis=-1)

    for_each_part(fill, importance)
    return keep_prefix(keep, num_prefix_tokens)


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
