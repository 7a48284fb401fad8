"""What it saves that the last block computes only the rows which the head reads (vitcod_cli/model/read_rows.py).

    python benchmarks/read_rows.py --model deit_tiny_patch16_224 --batch-size 32 [--precision bfloat16]
    OMP_NUM_THREADS=1 python benchmarks/read_rows.py --cpu-time --batch-size 8

Forward passes, interleaved, of random weights: timm's own dense model; ours dense as eval runs it; the same with
all rows of the last block; ours low-rank under a random mask of 90 %. ``--cpu-time``
is for a machine that others use.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vitcod_cli.artifacts.model_config import ModelConfig, SvdType
from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.bench.workload import for_inference, synthetic_images, timm_twin
from vitcod_cli.model.build import build_model, default_img_size
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.read_rows import rows_read
from vitcod_cli.runtime import Runtime, RuntimeSettings, start


def built(name: str, svd_type: SvdType, kept: float) -> Transformer:
    """A model of random weights, under a mask that keeps so much; 1: without one."""
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(model=name, num_classes=1000, img_size=default_img_size(name), svd_type=svd_type)
    )
    if kept < 1:
        keep = torch.rand(attention_shape(model)) < kept
        keep[..., 0] = keep[..., 0, :] = True
        set_keep_mask(model, keep)
    return model.eval()


def all_rows(model: Transformer, images: Tensor) -> Tensor:
    """Logits, as timm computes them."""
    logits: Tensor = model.forward_head(model.forward_features(images))
    return logits


def candidates(name: str, runtime: Runtime) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed, by name; timm's first."""
    dense = runtime.prepare(built(name, "none", 1))
    if rows_read(dense) is None:
        raise SystemExit(f"the head of {name} reads all rows")
    ready = for_inference(dense, runtime.dtype)
    sparse = runtime.prepare(built(name, "mix_head_fc_qk", 0.1))
    return {
        "timm, dense": runtime.prepare(timm_twin(dense)).eval(),
        "vitcod, dense": ready,
        "vitcod, dense, all rows": partial(all_rows, ready),
        "vitcod, low-rank, 90 % mask": for_inference(sparse, runtime.dtype),
    }


@torch.inference_mode()
def main() -> None:
    """Time all of them interleaved; a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cpu-time", action="store_true", help="of this process, instead of the time that passes")
    options = parser.parse_args()
    with start(RuntimeSettings(device=options.device, precision=options.precision)) as runtime:
        models = candidates(options.model, runtime)
        ours = models["vitcod, dense"]
        assert isinstance(ours, Transformer)
        images = synthetic_images(ours, options.batch_size, runtime.device)

        def run(model: Callable[[Tensor], Tensor]) -> None:
            with runtime.autocast():
                model(images)

        passes = [partial(run, model) for model in models.values()]
        for one in passes * 2:
            one()
        clock = time.process_time if options.cpu_time else time.perf_counter
        times = time_interleaved(
            passes, repeats=10, seconds=options.seconds, synchronize=runtime.synchronize, clock=clock
        )
        title = f"{options.model}, batch {options.batch_size}, {runtime.dtype}"
    table = Table("", "ms", "times as fast as timm", "middle half", title=title)
    for name, seconds in zip(models, times, strict=True):
        faster, half = ratio(times[0], seconds), Spread.of([1e3 * s for s in seconds])
        table.add_row(
            name, f"{half.median:,.1f}", f"{faster.median:.3f}", f"{faster.lower:.3f} to {faster.upper:.3f}"
        )
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
