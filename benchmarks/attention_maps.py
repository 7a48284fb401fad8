"""What collecting attention maps costs: a forward pass of dump-attn against one of eval, interleaved.

    python benchmarks/attention_maps.py --model deit_tiny_patch16_224 --batch-size 32

Random weights and pictures; reading pictures is left out.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.attention.collect import CollectingKernel
from vitcod_cli.bench.memory import peak_memory
from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.model.build import build_model, default_img_size
from vitcod_cli.model.layers import attention_shape, using
from vitcod_cli.runtime import RuntimeSettings, start


@torch.inference_mode()
def main() -> None:
    """Time and memory of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    size = (options.img_size,) * 2 if options.img_size else default_img_size(options.model)
    with start(RuntimeSettings(device=options.device, precision=options.precision)) as runtime:
        model = build_model(ModelConfig(model=options.model, num_classes=1000, img_size=size)).eval()
        model = runtime.prepare(model)
        images = torch.randn(options.batch_size, 3, *size, device=runtime.device)
        sums = torch.zeros(attention_shape(model), dtype=torch.float64, device=runtime.device)

        def run(collect: bool) -> None:
            collecting = using(model, lambda index: CollectingKernel(sums[index])) if collect else nullcontext()
            with collecting, runtime.autocast():
                model(images)

        runs = [partial(run, False), partial(run, True)]
        for one in runs:
            one()
        peaks = [peak_memory(one, model, runtime.device) for one in runs]
        times = time_interleaved(runs, repeats=8, seconds=options.seconds, synchronize=runtime.synchronize)
    title = f"{options.model}, {size[0]} pixels, batch {options.batch_size}, {options.precision}"
    table = Table("", "ms", "images/s", "peak MiB", "images/s against eval", title=title)
    for name, seconds, peak in zip(("eval", "dump-attn"), times, peaks, strict=True):
        middle, speed = Spread.of(seconds).median, 1 / ratio(seconds, times[0]).median
        memory = "" if peak is None else f"{peak / 2**20:,.0f}"
        table.add_row(name, f"{1e3 * middle:.0f}", f"{options.batch_size / middle:.1f}", memory, f"{speed:.2f}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
