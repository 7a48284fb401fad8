"""Can a fixed mask save time on hardware that people own? Attention alone, interleaved, with one mask.

    python benchmarks/sparse_attention.py --mask MASK --block 1 5 9 --batch-size 8 [--flex 16 64]

Candidates against torch's fused attention over all keys:

- bool mask, additive mask: the same with the mask, as a bool tensor and as numbers made once.
- planned: what vitcod does at inference (vitcod_cli/model/kernels/planned.py), used here whether or not it
  expects to pay.
- flex: FlexAttention with a block mask over tokens in the order of the plan's squares (needs a compiler).

Each takes the projected tokens [B, N, 3*H*d] and returns [B, N, H*d], as in the model.
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
from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.model.kernels.base import additive_mask
from vitcod_cli.model.kernels.planned import AttentionPlan, find_clusters
from vitcod_cli.runtime import RuntimeSettings, start

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def whole(attend: Attend, heads: int, qkv: Tensor) -> Tensor:
    """``attend`` on Q, K and V [B, H, N, d], between the layouts of the model."""
    q, k, v = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    return attend(q, k, v).transpose(1, 2).flatten(2)


def flex(keep: Tensor, order: Tensor, block_size: int) -> Attend:
    """FlexAttention over tokens that are in ``order`` already: in a model they would be, from the first block."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    keep = keep[:, order][:, :, order].contiguous()

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return keep[h, q, k]

    tokens, device = keep.shape[-1], str(keep.device.type)
    blocks = create_block_mask(mask_mod, None, len(keep), tokens, tokens, device, BLOCK_SIZE=block_size)
    print(f"flex, block size {block_size}: {blocks.sparsity():.0f} % of the blocks are empty")
    attend: Attend = partial(torch.compile(flex_attention), block_mask=blocks)
    return attend


def token_order(tokens: int, grid: tuple[int, int]) -> Tensor:
    """Prefix tokens, then patches square by square, 8 x 8 squares."""
    prefix = tokens - grid[0] * grid[1]
    edge = -(-max(grid) // 8)
    patches = torch.arange(prefix, tokens).view(grid)
    squares = [part.flatten() for rows in torch.split(patches, edge) for part in torch.split(rows, edge, dim=1)]
    return torch.cat([torch.arange(prefix), *squares])


@torch.inference_mode()
def main() -> None:
    """Time all candidates interleaved; a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mask", required=True)
    parser.add_argument("--block", type=int, nargs="+", default=[1, 5, 9])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--flex", type=int, nargs="*", default=[], help="block sizes of FlexAttention")
    options = parser.parse_args()
    mask = read_mask(options.mask)
    with start(RuntimeSettings(device=options.device)) as runtime:
        for block in options.block:
            keep = torch.from_numpy(mask.keep[block])
            measure(keep, int(mask.info.get("num_prefix_tokens", 1)), block, runtime.device, options)


def measure(keep: Tensor, prefix: int, block: int, device: torch.device, options: argparse.Namespace) -> None:
    """One block's mask."""
    heads, tokens = keep.shape[:2]
    edge = round((tokens - prefix) ** 0.5)
    if edge * edge != tokens - prefix:
        raise SystemExit("this script wants a square grid of patches")
    grid, dtype = (edge, edge), getattr(torch, options.dtype)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, tokens, 3 * heads * options.head_dim)
    qkv = torch.randn(shape, generator=generator).to(device, dtype)
    fused = F.scaled_dot_product_attention
    attends: dict[str, Attend] = {
        "all keys": fused,
        "bool mask": partial(fused, attn_mask=keep.to(device)[None]),
        "additive mask": partial(fused, attn_mask=additive_mask(keep.to(device), dtype)[None]),
    }
    candidates: dict[str, Callable[[Tensor], Tensor]] = {
        name: partial(whole, attend, heads) for name, attend in attends.items()
    }
    work = dict.fromkeys(candidates, "100%")
    expected = candidates["additive mask"](qkv)
    if device.type == "cpu" and dtype == torch.float32:
        plan = AttentionPlan(keep, [find_clusters(head, grid) for head in keep.numpy()])
        candidates["planned"], work["planned"] = plan, f"{plan.products:.0%}"
        torch.testing.assert_close(plan(qkv), expected, rtol=1e-3, atol=1e-4)
    for size in options.flex:
        attend = flex(keep.to(device), token_order(tokens, grid).to(device), size)
        candidates[f"flex, blocks of {size}"], work[f"flex, blocks of {size}"] = partial(whole, attend, heads), ""
    runs = [partial(candidate, qkv) for candidate in candidates.values()]
    for run in runs * 2:
        run()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = time_interleaved(runs, repeats=10, seconds=options.seconds, synchronize=synchronize)
    title = f"block {block}: {tokens} tokens, {heads} heads, {1 - keep.float().mean():.1%} pruned"
    table = Table("attention", "products done", "ms", "middle half", "time / all keys", title=title)
    for name, seconds in zip(candidates, times, strict=True):
        spread, against = Spread.of([1e3 * s for s in seconds]), ratio(seconds, times[0])
        half = f"{spread.lower:.2f} to {spread.upper:.2f}"
        table.add_row(name, work[name], f"{spread.median:.2f}", half, f"{against.median:.2f}")
    Console(width=90).print(table)
    medians = {name: Spread.of(seconds).median for name, seconds in zip(candidates, times, strict=True)}
    print(json.dumps({"block": block, "tokens": tokens, "seconds": medians}))


if __name__ == "__main__":
    main()
