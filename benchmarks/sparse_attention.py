"""Can a fixed mask save time on hardware that people own? Attention alone, by turns, with one mask.

    python benchmarks/sparse_attention.py --mask MASK --block 5 --batch-size 8 [--flex]

Candidates against torch's fused dense attention (with and without the mask):

- tiles: patches in square tiles; each tile's queries see the union of the keys that they keep, gathered by
  an index planned once. Prefix tokens see all keys.
- dropped keys: keys that no patch keeps are left out for all patches.
- flex: FlexAttention with a block mask over tokens in tile order (needs a compiler).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.bench.timing import Spread, ratio, take_turns

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Tiles:
    """Attention of one block's mask, planned ahead.

    Args:
        keep: bool [H, N, N]. tile: patches along a tile's edge. prefix: tokens before the patches.
    """

    def __init__(self, keep: Tensor, tile: int, prefix: int) -> None:
        patches = keep.shape[-1] - prefix
        edge = round(patches**0.5)
        if edge * edge != patches:
            raise SystemExit("tiles need a square grid of patches")
        grid = torch.arange(patches).view(edge, edge) + prefix
        groups = [part.flatten() for rows in grid.split(tile) for part in rows.split(tile, dim=1)]
        size = max(map(len, groups))
        # A short tile repeats a patch; the copies are dropped.
        rows = torch.stack([F.pad(g, (0, size - len(g)), value=int(g[0])) for g in groups])  # [G, r]
        union = keep[:, rows].any(dim=2)  # [H, G, N]
        width = int(union.sum(dim=-1).max())
        self.keys = union.int().argsort(dim=-1, descending=True, stable=True)[..., :width]  # [H, G, u]
        heads = torch.arange(len(keep))[:, None, None, None]
        self.mask = keep[heads, rows[None, :, :, None], self.keys[:, :, None, :]]  # [H, G, r, u]
        order = torch.cat([g * 0 + i * size + torch.arange(len(g)) for i, g in enumerate(groups)])
        self.back = torch.empty(patches, dtype=torch.long)
        self.back[torch.cat(groups) - prefix] = order
        self.rows, self.prefix, self.prefix_mask = rows, prefix, keep[:, :prefix]
        self.work = rows.numel() * width / patches**2

    def to(self, device: torch.device) -> Tiles:
        """The plan on ``device``."""
        for name in ("keys", "mask", "back", "rows", "prefix_mask"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q, K, V [B, H, N, d] to [B, H, N, d]."""
        batch, heads, _, d = q.shape
        index = torch.arange(heads, device=q.device)[:, None, None]
        queries = q[:, :, self.rows].flatten(1, 2)
        gathered = (x[:, index, self.keys].flatten(1, 2) for x in (k, v))
        mask = self.mask.flatten(0, 1)
        out = F.scaled_dot_product_attention(queries, *gathered, attn_mask=mask)
        patches = out.view(batch, heads, -1, d)[:, :, self.back]
        first = F.scaled_dot_product_attention(q[:, :, : self.prefix], k, v, attn_mask=self.prefix_mask)
        return torch.cat([first, patches], dim=2)


class DroppedKeys(Tiles):
    """One tile with all patches."""

    def __init__(self, keep: Tensor, prefix: int) -> None:
        super().__init__(keep, keep.shape[-1], prefix)


def flex(keep: Tensor, tile: int, prefix: int, block_size: int) -> Attend:
    """FlexAttention over tokens that are in tile order already."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    order = token_order(keep.shape[-1], tile, prefix)
    keep = keep[:, order][:, :, order].contiguous()

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return keep[h, q, k]

    tokens = keep.shape[-1]
    device = str(keep.device.type)
    blocks = create_block_mask(mask_mod, None, len(keep), tokens, tokens, device, BLOCK_SIZE=block_size)
    print(f"flex, block size {block_size}: {blocks.sparsity():.0f} % of the blocks are empty")
    attend: Attend = partial(torch.compile(flex_attention), block_mask=blocks)
    # In a model the tokens would be put in order once, before the first block.
    return attend


def token_order(tokens: int, tile: int, prefix: int) -> Tensor:
    """Prefix tokens, then the patches tile by tile."""
    edge = round((tokens - prefix) ** 0.5)
    grid = torch.arange(prefix, tokens).view(edge, edge)
    parts = [part.flatten() for rows in grid.split(tile) for part in rows.split(tile, dim=1)]
    return torch.cat([torch.arange(prefix), *parts])


@torch.inference_mode()
def main() -> None:
    """Time all candidates by turns; a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mask", required=True)
    parser.add_argument("--block", type=int, nargs="+", default=[5])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tile", type=int, nargs="+", default=[2, 4, 7])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--flex", type=int, nargs="*", default=[], help="block sizes of FlexAttention")
    options = parser.parse_args()
    mask, device = read_mask(options.mask), torch.device(options.device)
    for block in options.block:
        measure(
            torch.from_numpy(mask.keep[block]), int(mask.info.get("num_prefix_tokens", 1)), block, device, options
        )


def measure(keep: Tensor, prefix: int, block: int, device: torch.device, options: argparse.Namespace) -> None:
    """One block's mask."""
    heads, tokens = keep.shape[:2]
    generator = torch.Generator().manual_seed(0)
    shape = (3, options.batch_size, heads, tokens, options.head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(device, getattr(torch, options.dtype))
    on_device = keep.to(device)
    candidates: dict[str, Attend] = {
        "dense, fused": F.scaled_dot_product_attention,
        "dense, fused, masked": partial(F.scaled_dot_product_attention, attn_mask=on_device),
    }
    work = {"dense, fused": 1.0, "dense, fused, masked": 1.0}
    plans = {f"tiles of {tile}x{tile}": Tiles(keep, tile, prefix) for tile in options.tile}
    plans["dropped keys"] = DroppedKeys(keep, prefix)
    expected = candidates["dense, fused, masked"](q, k, v)
    for name, plan in plans.items():
        candidates[name], work[name] = plan.to(device), plan.work
        torch.testing.assert_close(candidates[name](q, k, v), expected, rtol=1e-2, atol=2e-3)
    for size in options.flex:
        name = f"flex, blocks of {size}"
        candidates[name], work[name] = flex(on_device, options.tile[0], prefix, size), float("nan")
    runs = [partial(attend, q, k, v) for attend in candidates.values()]
    for run in runs * 2:
        run()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = take_turns(runs, repeats=10, seconds=options.seconds, synchronize=synchronize)
    title = f"block {block}: {tokens} tokens, {heads} heads, {1 - keep.float().mean():.1%} pruned"
    table = Table("attention", "products done", "ms", "middle half", "time / dense", title=title)
    for name, seconds in zip(candidates, times, strict=True):
        spread, against = Spread.of([1e3 * s for s in seconds]), ratio(seconds, times[0])
        table.add_row(name, f"{work[name]:.0%}" if work[name] == work[name] else "", f"{spread.median:.2f}",
                      f"{spread.lower:.2f} to {spread.upper:.2f}", f"{against.median:.2f}")  # fmt: skip
    Console(width=90).print(table)
    medians = {name: Spread.of(seconds).median for name, seconds in zip(candidates, times, strict=True)}
    print(json.dumps({"block": block, "tokens": tokens, "seconds": medians}))


if __name__ == "__main__":
    main()
