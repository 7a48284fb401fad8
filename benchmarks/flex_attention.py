"""Does a mask of whole tiles save time on a GPU? ViT-S and ViT-B at 1,024 pixels, 90 % of the tiles empty.

    python benchmarks/flex_attention.py                      # on a GPU, in bfloat16, some five minutes
    python benchmarks/flex_attention.py --device cpu --tiny  # that it runs: half a minute on a CPU

By turns, attention alone and the whole model: fused attention without a mask, fused attention with the mask, and
FlexAttention (vitcod_cli/model/kernels/flex.py), compiled on a GPU and not on a CPU. Weights and mask are random:
tiles of the prefix and of the diagonal are kept, and others at random, in each head other ones. ``--mask`` takes a
mask of gen-mask in its place.

Before anything is timed the outputs are compared: those of FlexAttention with those of masked fused attention.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.bench.workload import for_inference, without_mask
from vitcod_cli.model.build import build_model
from vitcod_cli.model.families import Transformer, grid_size
from vitcod_cli.model.kernels.base import Heads, additive_mask
from vitcod_cli.model.kernels.flex import FlexKernel
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.layers import attention_shape, attentions, set_keep_mask
from vitcod_cli.model.tiles import token_tiles
from vitcod_cli.runtime import Runtime, RuntimeSettings, start

MODELS = ["vit_small_patch16_224", "vit_base_patch16_224"]
TINY = {"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
DENSE, MASKED, FLEX = "fused, no mask", "fused, mask", "flex"


def main() -> None:
    """A table and a line of JSON for each model and size of tiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--img-size", type=int, default=1024)
    parser.add_argument("--block", type=int, nargs="+", default=[128])
    parser.add_argument("--empty", type=float, default=0.9, help="share of tiles that are empty")
    parser.add_argument("--mask", help="a mask instead of a random one, of the first --model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement of each way")
    parser.add_argument("--tiny", action="store_true", help="small models and 128 pixels: to see that it runs")
    options = parser.parse_args()
    if options.tiny:
        options.model, options.img_size, options.block = ["vit_tiny_patch16_224"], 128, [16, 32]
        options.batch_size, options.seconds = 2, 0.2
    if options.precision is None:
        options.precision = "float32" if options.device == "cpu" else "bfloat16"
    settings = RuntimeSettings(device=options.device, precision=options.precision)
    with start(settings) as runtime, torch.inference_mode():
        for name in options.model:
            for block in options.block:
                measure(name, block, runtime, options)


def measure(name: str, block: int, runtime: Runtime, options: argparse.Namespace) -> None:
    """One model with tiles of one size."""
    size = options.img_size
    config = ModelConfig(
        model=name, num_classes=1000, img_size=(size, size), model_kwargs=TINY if options.tiny else {}
    )
    model = runtime.prepare(build_model(config)).eval()
    keep = (
        torch.from_numpy(read_mask(options.mask).keep) if options.mask else tiled_mask(model, block, options.empty)
    )
    set_keep_mask(model, keep)
    empty = 1 - tiles_kept(keep, model, block)
    kept = keep[0].float().mean().item()
    title = f"{name}, {keep.shape[-1]} tokens, batch {options.batch_size}, {runtime.dtype}".replace("torch.", "")
    title += f"\ntiles of {block}, {empty:.1%} empty; {1 - kept:.1%} of the entries pruned; {device_name(runtime)}"
    table = Table("", "way", "ms", "middle half", "time / no mask", "time / mask", title=title)
    record: dict[str, Any] = {"name": name, "tokens": keep.shape[-1], "block": block, "empty_tiles": empty}
    alone = attention(model, block, runtime, options)
    record["attention"] = compare("attention", alone, table, runtime, options.seconds)
    del alone
    record["model"] = compare("model", models(model, runtime, options), table, runtime, options.seconds)
    Console(width=100).print(table)
    print(json.dumps({**record, "device": device_name(runtime), "torch": torch.__version__}), flush=True)


def tiled_mask(model: Transformer, block: int, empty: float) -> Tensor:
    """Bool [L, H, N, N] on the CPU, of whole tiles: those of the prefix and the diagonal, and random others."""
    layers, heads, tokens, _ = attention_shape(model)
    tiles = token_tiles(tokens, grid_size(model), block)
    number, of_tokens = len(tiles.sizes), torch.from_numpy(tiles.of_tokens)
    kept = torch.zeros(layers, heads, number, number, dtype=torch.bool)
    kept |= torch.eye(number, dtype=torch.bool)
    kept[..., : tiles.num_prefix] = kept[..., : tiles.num_prefix, :] = True
    more = round((1 - empty) * number**2) - int(kept[0, 0].sum())
    draw = torch.rand(kept.shape, generator=torch.Generator().manual_seed(0)).masked_fill_(kept, -1).flatten(2)
    chosen = draw.topk(max(more, 0), dim=-1).indices
    kept = kept.flatten(2).scatter_(2, chosen, True).view(kept.shape)
    keep = torch.empty(layers, heads, tokens, tokens, dtype=torch.bool)
    for layer in range(layers):
        keep[layer] = kept[layer][:, of_tokens][:, :, of_tokens]
    return keep


def tiles_kept(keep: Tensor, model: Transformer, block: int) -> float:
    """Share of the tiles that keep something, of the first block."""
    tiles = token_tiles(keep.shape[-1], grid_size(model), block)
    _, partial_tiles, full = FlexKernel(keep[0], grid_size(model), block).work
    return (partial_tiles + full) / (keep.shape[1] * len(tiles.sizes) ** 2)


def attention(
    model: Transformer, block: int, runtime: Runtime, options: argparse.Namespace
) -> dict[str, Callable[[], Tensor]]:
    """Attention of the first block alone, with its kernels as the model calls them."""
    layer = attentions(model)[0]
    keep, grid = layer.keep, grid_size(model)
    assert keep is not None
    shape = (options.batch_size, keep.shape[-1], 3 * layer.attn_dim)
    qkv = torch.randn(shape, device=runtime.device, dtype=runtime.dtype)
    q, k, v = layer._heads(qkv, 3, layer.num_heads)
    heads = Heads(qkv, q, k, v, qkv)
    masked, flex = FusedKernel(additive_mask(keep, runtime.dtype)[None]), FlexKernel(keep, grid, block).eval()
    return {
        DENSE: partial(FusedKernel(), heads, None),
        MASKED: partial(masked, heads, keep),
        FLEX: partial(flex, heads, keep),
    }


def models(model: Transformer, runtime: Runtime, options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """The whole model, as ``vitcod eval`` runs it."""
    ready = {
        DENSE: for_inference(without_mask(model), runtime.dtype),
        MASKED: for_inference(model, runtime.dtype, "fused"),
        FLEX: for_inference(model, runtime.dtype, "flex"),
    }
    shape = (options.batch_size, 3, options.img_size, options.img_size)
    images = torch.randn(shape, device=runtime.device)

    def run(network: Transformer) -> Tensor:
        with runtime.autocast():
            logits: Tensor = network(images)
        return logits

    return {name: partial(run, network) for name, network in ready.items()}


def compare(
    what: str, ways: dict[str, Callable[[], Tensor]], table: Table, runtime: Runtime, seconds: float
) -> dict[str, Any]:
    """Check that they agree, then time them by turns; adds rows to the table."""
    for _ in range(2):  # the first call compiles
        outputs = {name: way().float() for name, way in ways.items()}
    difference = float((outputs[FLEX] - outputs[MASKED]).abs().max() / outputs[MASKED].abs().max())
    if not difference < (1e-3 if runtime.dtype == torch.float32 else 5e-2):
        raise SystemExit(
            f"{what}: FlexAttention differs from fused attention by {difference:.2g} of the largest value"
        )
    runs = [partial(_forget, way) for way in ways.values()]
    times = time_interleaved(runs, repeats=10, seconds=seconds, synchronize=runtime.synchronize)
    figures: dict[str, Any] = {"relative_difference": difference}
    by_name = dict(zip(ways, times, strict=True))
    for name, own in by_name.items():
        spread = Spread.of([1e3 * one for one in own])
        dense, masked = (ratio(own, by_name[other]) for other in (DENSE, MASKED))
        half = f"{spread.lower:.2f} to {spread.upper:.2f}"
        table.add_row(what, name, f"{spread.median:.2f}", half, f"{dense.median:.2f}", f"{masked.median:.2f}")
        figures[name] = {"ms": spread.median, "to_dense": dense.median, "to_masked": masked.median}
    return figures


def _forget(way: Callable[[], Tensor]) -> None:
    way()


def device_name(runtime: Runtime) -> str:
    return torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU, uncompiled"


if __name__ == "__main__":
    main()
