"""Masked attention tile by tile, empty tiles left out: FlexAttention, for inference on a GPU.

A mask is the same for every image, so which tiles have something to compute is known before the first one: each
layer holds one ``BlockMask``, made once, with its heads apart. Q, K and V are gathered in the order of the tiles
(:mod:`vitcod_cli.model.tiles`), and what comes out is put back; a model whose patches lay in this order from the
first block on would save both. Masks of ``gen-mask --block`` have whole tiles, others few empty ones.

Not measured on a GPU yet, so nothing takes it that isn't told to (``--attention``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from vitcod_cli.model.kernels.base import Heads
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.tiles import Indices, TokenTiles, token_tiles

BLOCK = 128
"""Tiles of FlexAttention unless told otherwise, and the largest that its kernels compute at once."""

SMALLEST = 16

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexKernel(FusedKernel):
    """FlexAttention where all rows are wanted and nothing is trained; else fused attention.

    Compiled on a GPU; on a CPU not, which computes all products, then masks them: for tests.

    Args:
        keep: bool [H, N, N], on the device; every row keeps a key.
        grid: patches along height and width; tokens before the patches are class and register tokens.
        block: tokens of a tile, a power of two from 16 on; None: see :func:`tile_size`.
        bias: what is added to the logits beside the mask, [H, N, N], or None.

    Attributes:
        mask: the tiles to compute, of tokens in the order of ``places``.
        places: int64 [M]: the token at each place of the tiles, some twice to fill tiles up.
        position: int64 [N]: the place of each token.
    """

    def __init__(
        self, keep: Tensor, grid: tuple[int, int], block: int | None = None, *, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        tiles = token_tiles(keep.shape[-1], grid, block or tile_size(keep, grid))
        tokens, first = _places(tiles, keep.device)
        position = torch.empty(keep.shape[-1], dtype=torch.int64, device=keep.device)
        position[tokens[first]] = first.nonzero()[:, 0]
        self.register_buffer("places", tokens, persistent=False)
        self.register_buffer("position", position, persistent=False)
        self.places: Tensor
        self.position: Tensor
        self.mask = block_mask(keep, tiles)
        self._score_mod = None if bias is None else _plus(bias[:, tokens][:, :, tokens])
        on_gpu = keep.device.type == "cuda"
        self._attend: Callable[..., Any] = flex_attention
        # No row is empty. Versions of torch before 2.14 don't make their own tiles smaller where a mask's are.
        self._options: dict[str, Any] = {"ROWS_GUARANTEED_SAFE": True}
        if on_gpu:
            self._attend = _compiled()
            if tiles.block < BLOCK:
                self._options |= {"BLOCK_M": tiles.block, "BLOCK_N": tiles.block}

    @property
    def work(self) -> tuple[int, int, int]:
        """Tokens of a tile; tiles that are kept in part; full tiles."""
        counts = (self.mask.kv_num_blocks, self.mask.full_kv_num_blocks)
        partial, full = (0 if count is None else int(count.sum()) for count in counts)
        return self.mask.BLOCK_SIZE[0], partial, full

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""
        some_rows = heads.q.shape[-2] != heads.k.shape[-2]
        trains = self.training or dropout > 0 or (torch.is_grad_enabled() and heads.q.requires_grad)
        if some_rows or trains:
            return super().forward(heads, keep, dropout)
        q, k, v = self._in_tiles(heads)
        attended = self._attend(
            q, k, v, score_mod=self._score_mod, block_mask=self.mask, kernel_options=self._options
        )
        merged: Tensor = attended.transpose(1, 2).index_select(1, self.position).flatten(2)
        return merged

    def _in_tiles(self, heads: Heads) -> tuple[Tensor, ...]:
        """Q, K and V in the order of the tiles, each [B, H, M, d], of one dtype."""
        if heads.packed is not None:
            moved = heads.packed.index_select(1, self.places)
            parts = moved.view(*moved.shape[:2], 3, heads.q.shape[1], -1)
            return tuple(parts.permute(2, 0, 3, 1, 4).unbind(0))
        # Behind a norm, autocast leaves Q and K in float32; fused attention would cast them itself.
        return tuple(part.to(heads.v.dtype).index_select(2, self.places) for part in (heads.q, heads.k, heads.v))


def block_mask(keep: Tensor, tiles: TokenTiles) -> BlockMask:
    """The mask of each head as tiles: which are empty, which are kept in part, and which are full.

    In full tiles nothing is masked. ``mask_mod`` says the whole mask nevertheless, since the uncompiled
    FlexAttention asks nothing else.

    Args:
        keep: bool [H, N, N].
    """
    tokens, first = _places(tiles, keep.device)
    size, kept = tiles.block, whole_tiles(keep, tiles)
    if kept is not None:
        full = kept & first.view(-1, size).all(dim=1)
        return _block_mask(kept, full, size, _by_tile(kept, first, size))
    moved = keep[:, tokens][:, :, tokens] & first  # a key that is there twice counts once
    split = moved.view(len(keep), -1, size, len(tiles.sizes), size)
    some, full = split.any(dim=4).any(dim=2), split.all(dim=4).all(dim=2)
    return _block_mask(some, full, size, _by_entry(moved))


def _block_mask(some: Tensor, full: Tensor, size: int, mask_mod: MaskMod) -> BlockMask:
    """Of the tiles that keep ``some`` entries and that are ``full``, bool [H, T, T]."""
    return BlockMask.from_kv_blocks(*_lists(some & ~full), *_lists(full), BLOCK_SIZE=size, mask_mod=mask_mod)


def _by_tile(kept: Tensor, first: Tensor, size: int) -> MaskMod:
    _of_one_size(kept, first)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return kept[h, q // size, k // size] & first[k]

    return mask_mod


def _by_entry(moved: Tensor) -> MaskMod:
    _of_one_size(moved)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return moved[h, q, k]

    return mask_mod


def _plus(bias: Tensor) -> ScoreMod:
    """Adds ``bias`` [H, M, M], in the order of the tiles, to logits."""
    _of_one_size(bias)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[h, q, k]

    return score_mod


def _of_one_size(*tensors: Tensor) -> None:
    """Have no code made for these tensors in any size: it is slower, and on a CPU torch 2.14 makes it wrong."""
    for tensor in tensors:
        torch._dynamo.mark_static(tensor)


def tile_size(keep: Tensor, grid: tuple[int, int]) -> int:
    """The largest tiles, up to 128 tokens, that ``keep`` [H, N, N] keeps or prunes whole; else 128."""
    num_tokens = keep.shape[-1]
    smallest = token_tiles(num_tokens, grid, SMALLEST)
    kept = whole_tiles(keep, smallest)
    if kept is None:
        return BLOCK
    size = BLOCK
    while not _are_whole(kept, smallest.within(token_tiles(num_tokens, grid, size))):
        size //= 2
    return size


def whole_tiles(keep: Tensor, tiles: TokenTiles) -> Tensor | None:
    """Which tiles ``keep`` [H, N, N] keeps, bool [H, T, T]; None where it keeps one in part."""
    first = torch.from_numpy(tiles.order[tiles.starts]).to(keep.device)
    return keep[:, first][:, :, first] if _are_whole(keep, tiles.of_tokens) else None


def _are_whole(keep: Tensor, groups: Indices) -> bool:
    """Whether ``keep`` [H, n, n] says the same of all members of two ``groups``, int64 [n]: the group of each."""
    members = torch.from_numpy(np.unique(groups, return_index=True)[1]).to(keep.device)
    of_members = torch.from_numpy(groups).to(keep.device)
    # Head by head: a copy of one is large enough.
    return all(torch.equal(head, head[members][:, members][of_members][:, of_members]) for head in keep)


def _places(tiles: TokenTiles, device: torch.device) -> tuple[Tensor, Tensor]:
    """:attr:`TokenTiles.places` on the device."""
    tokens, first = tiles.places
    return torch.from_numpy(tokens).to(device), torch.from_numpy(first).to(device)


def _lists(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Of tiles bool [H, T, T]: how many there are in each row, and which, these first; int32 [1, H, T (, T)]."""
    order = torch.argsort(tiles.to(torch.int8), dim=-1, descending=True, stable=True)
    return tiles.sum(dim=-1, dtype=torch.int32)[None], order.to(torch.int32)[None].contiguous()


@cache
def _compiled() -> Callable[..., Any]:
    """One for all layers: their masks differ in numbers only, so that code is made once for each size of batch."""
    return torch.compile(flex_attention)
