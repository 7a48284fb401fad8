"""Spending a budget of entries over all blocks, heads and rows together: ``gen-mask --allocate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.budget import Importance, largest_entries, necessary_entries
from vitcod_cli.masks.lanes import fill_lanes
from vitcod_cli.masks.method import DEFAULT_SPARSITY, MaskMethod
from vitcod_cli.masks.ranking import Keep
from vitcod_cli.settings import setting


@dataclass(frozen=True, kw_only=True)
class Allocated(MaskMethod):
    """Options of the method; ``--sparsity`` is that of the info method, whose place it takes."""

    name = "allocated"

    allocate: bool = setting(
        False,
        "Spend the --sparsity where it does the least damage, over all blocks, heads and rows together, instead "
        "of the same info cut everywhere; needs a map from dump-attn --importance-images.",
    )
    lanes: int | None = setting(
        None,
        "Of --allocate: give keys and queries multiples of so many entries, as many as a group of lines of an "
        "accelerator takes at once: as much loss in fewer cycles (vitcod simulate).",
        minimum=1,
        maximum=1024,
        metavar="N",
        show_default="as the damage is least",
    )
    target: float = DEFAULT_SPARSITY

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`allocated_mask`."""
        if attention_map.importance is None:
            raise VitcodError(
                "--allocate needs to know what every entry is worth, and --attn-map doesn't say it; make the map "
                "again with vitcod dump-attn --importance-images 256."
            )
        if self.lanes is None:
            return allocated_mask(attention_map.importance, self.target, num_prefix_tokens), {}
        keep = fill_lanes(attention_map.importance, self.target, num_prefix_tokens, self.lanes)
        return keep, {"lanes": self.lanes}


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
    keep, _ = largest_entries(importance, sparsity, necessary_entries(importance, num_prefix_tokens))
    return keep
