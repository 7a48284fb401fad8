"""Masks that prune one block alone, or one of its heads: what the sensitivity of a model is measured with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import Allocated
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.info import Info
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.ranking import Keep
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.reporting import Reporter


@dataclass(frozen=True)
class PartialMask:
    """A block whose entries are pruned, or one head of it; everything else is kept.

    Attributes:
        block: the attention layer, of the L of maps and masks.
        head: None where all heads of the block are pruned.
        target: share of the entries that was to be pruned.
        sparsity: share that is; an info cut comes as near as it can.
        num_tokens: N.
        bits: uint8 [H, N, ceil(N / 8)], ``part_keep`` packed, as there are many of them at once.
    """

    block: int
    head: int | None
    target: float
    sparsity: float
    num_tokens: int
    bits: NDArray[np.uint8]

    @property
    def part_keep(self) -> Keep:
        """bool [H, N, N], or [1, N, N] of one head; True = kept."""
        return np.unpackbits(self.bits, axis=-1, count=self.num_tokens).view(np.bool_)

    def keep(self, num_heads: int) -> Keep:
        """The mask of the block, bool [H, N, N]."""
        part = self.part_keep
        if self.head is None:
            return part
        keep = np.ones((num_heads, *part.shape[1:]), dtype=np.bool_)
        keep[self.head] = part[0]
        return keep


def partial_masks(
    attention_map: AttentionMap,
    sparsities: Sequence[float],
    *,
    method: Literal["info", "allocated"],
    per: Literal["block", "head"],
    reporter: Reporter,
) -> list[PartialMask]:
    """A mask for each block (or head) at each sparsity, block after block; prefix tokens are kept whole.

    What a method can't give is left out, with a warning.

    Args:
        attention_map: with ``importance`` for allocated masks, which rank the entries of each part by it.

    Raises:
        VitcodError: if the map is none, or no mask can be made.
    """
    masks: list[PartialMask] = []
    missing: list[str] = []
    for block, head, part in _parts(attention_map, per):
        for sparsity in sparsities:
            settings = MaskSettings(
                info=Info(sparsity=sparsity), allocated=Allocated(allocate=method == "allocated")
            )
            try:
                keep = generate_mask(part, settings, reporter).keep[0]
            except SparsityError as error:
                missing.append(f"{_name(block, head)}: {error}")
            else:
                bits = np.packbits(keep, axis=-1)
                masks.append(PartialMask(block, head, sparsity, sparsity_of(keep), keep.shape[-1], bits))
    if not masks:
        raise VitcodError(f"No part of the model can be pruned like that. {missing[0]}")
    if missing:
        reporter.warn(f"{len(missing)} of {len(missing) + len(masks)} masks are left out. {missing[0]}")
    return masks


def _parts(
    attention_map: AttentionMap, per: Literal["block", "head"]
) -> Iterator[tuple[int, int | None, AttentionMap]]:
    """Number of the block and of the head, and the map of these alone, [1, heads, N, N]."""
    attention, importance = attention_map.attention, attention_map.importance
    for block in range(len(attention)):
        for head in range(attention.shape[1]) if per == "head" else (None,):
            heads = slice(None) if head is None else slice(head, head + 1)
            place = (slice(block, block + 1), heads)
            own = None if importance is None else importance[place]
            yield block, head, AttentionMap(attention[place], attention_map.num_images, attention_map.info, own)


def _name(block: int, head: int | None) -> str:
    return f"Block {block}" if head is None else f"Block {block}, head {head}"
