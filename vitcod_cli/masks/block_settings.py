"""Of which tiles a mask is made: ``gen-mask --block``, ``--block-keys`` and ``--block-for``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

LEAST_BLOCK = 16
"""Fewest queries of a tile: no kernel of a GPU computes smaller ones, and no plan on a CPU is worth it."""

SHAPES: dict[str, tuple[int, int]] = {"cpu": (64, 1), "gpu": (128, 128)}
"""Queries and keys of the tiles that the kernels of a device skip; see docs/benchmarks.md."""


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
        "The tiles that save time there: --block 64 --block-keys 1 for cpu, --block 128 for gpu.",
        show_default=False,
        aliases=("--for",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_for is not None:
            for flag, value in (("--block", self.block), ("--block-keys", self.block_keys)):
                if value is not None:
                    raise VitcodError(
                        f"--block-for says how large tiles are, as {flag} does; leave one of them out."
                    )
        for flag, value in (("--block", self.block), ("--block-keys", self.block_keys)):
            if value is not None and value & (value - 1):
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
    def shape(self) -> tuple[int, int] | None:
        """Queries and keys of a tile; None: single entries."""
        if self.block_for is not None:
            return SHAPES[self.block_for]
        return None if self.block is None else (self.block, self.block_keys or self.block)

    @property
    def chosen_by(self) -> str:
        """The option that asks for tiles."""
        return "--block" if self.block_for is None else "--block-for"

    @property
    def parameters(self) -> dict[str, Any]:
        """What a mask's info says of them."""
        if self.shape is None:
            return {}
        queries, keys = self.shape
        return {"block": queries} if keys == queries else {"block": queries, "block_keys": keys}

    @property
    def suffix(self) -> str:
        """What names of files say of them."""
        if self.shape is None:
            return ""
        queries, keys = self.shape
        return f"_block{queries}" if keys == queries else f"_block{queries}x{keys}"
