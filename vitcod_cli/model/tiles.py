"""Tiles of an attention matrix: square pieces of so many tokens that lie near each other. numpy only.

A GPU computes attention in square tiles, so a mask saves time there where it prunes whole ones. Tokens that lie
near each other in a picture look at much the same keys: along a Hilbert curve over the patches, tokens that follow
each other are near in both directions. Class and register tokens, which all look at, have tiles of their own.
``gen-mask --block`` makes masks of whole tiles; :mod:`vitcod_cli.model.kernels.flex` leaves empty ones out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class TokenTiles:
    """Which tile each token is in.

    Attributes:
        order: int64 [N]: the tokens, prefix tokens first, then patches along the curve.
        sizes: int64 [T]: how many tokens each tile takes of this order, one tile after the other.
        block: most patches of a tile.
        num_prefix: tiles of prefix tokens, the first ones.
    """

    order: Indices
    sizes: Indices
    block: int
    num_prefix: int

    @property
    def starts(self) -> Indices:
        """int64 [T]: where in the order each tile begins."""
        starts: Indices = np.cumsum(self.sizes) - self.sizes
        return starts

    @property
    def of_tokens(self) -> Indices:
        """int64 [N]: the tile of each token, in the model's own order of tokens."""
        tiles = np.empty_like(self.order)
        tiles[self.order] = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return tiles

    @property
    def areas(self) -> Indices:
        """int64 [T, T]: entries of each tile of an attention matrix."""
        return np.outer(self.sizes, self.sizes)

    def within(self, larger: TokenTiles) -> Indices:
        """int64 [T]: the tile of ``larger`` ones, of the same tokens, that each of these is a part of."""
        return np.searchsorted(larger.starts, self.starts, side="right") - 1

    @property
    def places(self) -> tuple[Indices, NDArray[np.bool_]]:
        """All tiles filled up to ``block`` places: the token at each, and whether it is there for the first time.

        Tiles with fewer tokens repeat their last one. Both have T * ``block`` elements.
        """
        within = np.arange(self.block)
        index = self.starts[:, None] + np.minimum(within, self.sizes[:, None] - 1)
        return self.order[index].ravel(), (within < self.sizes[:, None]).ravel()


def token_tiles(
    num_tokens: int, grid: tuple[int, int], block: int, *, prefix_block: int | None = None
) -> TokenTiles:
    """Tiles of ``block`` tokens; the last of the prefix tokens and the last of the patches may have fewer.

    Args:
        num_tokens: prefix tokens, then the patches row by row.
        grid: patches along height and width.
        prefix_block: most prefix tokens of a tile, where it is another number.
    """
    patches = grid[0] * grid[1]
    prefix = num_tokens - patches
    order = np.concatenate([np.arange(prefix), prefix + curve(grid)])
    sizes = [_cut(prefix, prefix_block or block), _cut(patches, block)]
    return TokenTiles(order, np.concatenate(sizes), block, len(sizes[0]))


def curve(grid: tuple[int, int]) -> Indices:
    """The patches of a grid (height, width) along a Hilbert curve: int64 [height * width], row-major indices.

    Each patch comes once. Each is beside the one before it, or at a corner of it where a side is odd.
    """
    height, width = grid
    along, across = ((0, width), (height, 0)) if width >= height else ((height, 0), (0, width))
    return np.array([y * width + x for y, x in _hilbert((0, 0), along, across)], dtype=np.int64)


Step = tuple[int, int]


def _hilbert(start: Step, along: Step, across: Step) -> Iterator[Step]:
    """The generalised Hilbert curve of a rectangle of any sides, from a corner to the one that ``along`` leads to.

    Args:
        start: (y, x) of the corner.
        along, across: the two sides as vectors, one coordinate of each being 0.
    """
    (y, x), length, depth = start, _length(along), _length(across)
    if depth == 1 or length == 1:
        side = along if depth == 1 else across
        step = _unit(side)
        yield from ((y + i * step[0], x + i * step[1]) for i in range(_length(side)))
        return
    if 2 * length > 3 * depth:  # a long one: two in a row
        half = _half(along)
        yield from _hilbert(start, half, across)
        yield from _hilbert(_sum(start, half), _sum(along, _minus(half)), across)
        return
    # Up, over and down again.
    half, flank = _part(along, length // 2), _half(across)
    yield from _hilbert(start, flank, half)
    yield from _hilbert(_sum(start, flank), along, _sum(across, _minus(flank)))
    end = _sum(start, along, _minus(_unit(along)), flank, _minus(_unit(across)))
    yield from _hilbert(end, _minus(flank), _minus(_sum(along, _minus(half))))


def _half(side: Step) -> Step:
    """Half of a side; of an even number of steps where it can be, so that the halves join."""
    length = _length(side)
    half = length // 2
    return _part(side, half + 1 if half % 2 and length > 2 else half)


def _part(side: Step, length: int) -> Step:
    unit = _unit(side)
    return unit[0] * length, unit[1] * length


def _length(side: Step) -> int:
    return abs(side[0] + side[1])


def _unit(side: Step) -> Step:
    return (side[0] > 0) - (side[0] < 0), (side[1] > 0) - (side[1] < 0)


def _sum(*steps: Step) -> Step:
    return sum(step[0] for step in steps), sum(step[1] for step in steps)


def _minus(step: Step) -> Step:
    return -step[0], -step[1]


def _cut(count: int, size: int) -> Indices:
    """``count`` in parts of ``size``, the last of what is left."""
    return np.diff(np.append(np.arange(0, count, size), count)).astype(np.int64)
