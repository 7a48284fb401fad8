"""Spending a budget of entries over all blocks, heads and rows together: ``gen-mask --allocate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.budget import Importance, largest_entries, necessary_with_floor
from vitcod_cli.masks.floor_settings import FloorSettings
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
    floor: FloorSettings = field(default_factory=FloorSettings)
    target: float = DEFAULT_SPARSITY

    @property
    def wanted(self) -> float:
        """See :class:`~vitcod_cli.masks.method.MaskMethod`."""
        return self.target

    def at(self, sparsity: float) -> Allocated:
        """See :class:`~vitcod_cli.masks.method.MaskMethod`."""
        return self.changed(target=sparsity)

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`allocated_mask`."""
        if attention_map.importance is None:
            raise VitcodError(
                "--allocate needs to know what every entry is worth, and --attn-map doesn't say it; make the map "
                "again with vitcod dump-attn --importance-images 256."
            )
        importance, floor = attention_map.importance, self.floor
        if self.lanes is None:
            return allocated_mask(importance, self.target, num_prefix_tokens, floor), floor.parameters
        keep = fill_lanes(importance, self.target, num_prefix_tokens, self.lanes, floor)
        return keep, {"lanes": self.lanes, **floor.parameters}


def allocated_mask(
    importance: Importance, sparsity: float, num_prefix_tokens: int, floor: FloorSettings | None = None
) -> Keep:
    """Keep the entries of the whole model that are worth most.

    Prefix rows and columns are kept, the best entry of every row, and what ``floor`` asks for. Where entries tie,
    the later is kept.

    Args:
        importance: [L, H, N, N], larger for an entry that is worth more.
        sparsity: share of pruned entries among all, prefix included; reached to the entry.
        num_prefix_tokens: tokens whose rows and columns are kept.

    Raises:
        VitcodError: if the entries that must be kept are more than this sparsity leaves.
    """
    necessary = necessary_with_floor(importance, sparsity, num_prefix_tokens, floor or FloorSettings())
    keep, _ = largest_entries(importance, sparsity, necessary)
    return keep
