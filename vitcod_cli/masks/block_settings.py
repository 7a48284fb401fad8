"""Of which tiles a mask is made: ``gen-mask --block``, ``--block-keys`` and ``--block-for``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

LEAST_BLOCK = 16
"""Fewest queries of a tile: no kernel of a GPU computes smaller ones, and no plan on a CPU is worth it."""

GPU_TILE = 128
"""Queries and keys of the tiles that FlexAttention skips at the size it is fastest with."""

SMALL_GROUP, LARGE_GROUP, LARGE = 16, 64, 1024
"""Queries that share their keys on a CPU, 4 x 4 patches or 8 x 8, and from how many patches on the latter.

Smaller groups lose less accuracy; larger ones save more time, where tokens are many. See docs/benchmarks.md.
"""


@dataclass(frozen=True, kw_only=True)
class BlockSettings(Settings, panel="Mask"):
    """Options of tiles; without them single entries are pruned."""

    block: int | None = setting(
        None,
        "Prune whole tiles of so many queries and keys, a power of two, along a Hilbert curve over the patches: "
        "what a GPU that computes in tiles can skip.",
        minimum=LEAST_BLOCK,
        maximum=1024,
        metavar="N",
        show_default="single entries",
    )
    block_keys: int | None = setting(
        None,
        "Of --block: keys of a tile, where they shall be fewer than its queries. With 1, each group of --block "
        "queries shares its keys, which is what attention on a CPU can skip, at little loss.",
        minimum=1,
        maximum=1024,
        metavar="N",
        show_default="as many as --block",
    )
    block_for: Literal["cpu", "gpu"] | None = setting(
        None,
        "The tiles that save time there: for cpu groups of 16 queries, of 64 from 1,024 patches on, that share "
        "their keys (--block-keys 1); for gpu --block 128.",
        show_default=False,
        aliases=("--for",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (("--block", self.block), ("--block-keys", self.block_keys)):
            if value is None:
                continue
            if self.block_for is not None:
                raise VitcodError(f"--block-for says how large tiles are, as {flag} does; leave one out.")
            if value & (value - 1):
                below = 1 << (value.bit_length() - 1)
                raise VitcodError(f"{flag} must be a power of two, such as {below}, not {value}.")
        if self.block_keys is None:
            return
        if self.block is None:
            raise VitcodError("--block-keys says how many keys a tile of --block has: give that too.")
        if self.block_keys > self.block:
            raise VitcodError(
                f"--block-keys {self.block_keys} is more than the {self.block} queries of --block; take no more."
            )

    @property
    def given(self) -> bool:
        """Whether there are tiles, or single entries."""
        return self.block is not None or self.block_for is not None

    def shape(self, patches: int) -> tuple[int, int]:
        """Queries and keys of a tile for images of so many patches, where tiles are given.

        Raises:
            VitcodError: if they are more than the patches.
        """
        queries, keys = self._shape(patches)
        if queries > patches:
            most = 1 << (patches.bit_length() - 1)
            way_on = f"take --block {most} at most" if most >= LEAST_BLOCK else "leave it out"
            raise VitcodError(
                f"{self.chosen_by} takes {queries} queries in a tile, and an image has {patches} patches; "
                f"{way_on}."
            )
        return queries, keys

    def _shape(self, patches: int) -> tuple[int, int]:
        if self.block is not None:
            return self.block, self.block_keys or self.block
        if self.block_for == "gpu":
            return GPU_TILE, GPU_TILE
        return LARGE_GROUP if patches >= LARGE else SMALL_GROUP, 1

    @property
    def chosen_by(self) -> str:
        """The option that asks for tiles."""
        return "--block" if self.block_for is None else "--block-for"

    @property
    def suffix(self) -> str:
        """What names of files say of them."""
        if self.block_for is not None:
            return f"_{self.block_for}"
        if self.block is None:
            return ""
        keys = "" if self.block_keys in (None, self.block) else f"x{self.block_keys}"
        return f"_block{self.block}{keys}"
