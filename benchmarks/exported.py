"""Exported programs interleaved: what ``vitcod export`` wrote, run by torch and by onnxruntime.

    vitcod export --checkpoint MODEL --output dense.pt2 ...
    vitcod export --checkpoint MODEL --mask MASK --output masked.pt2 ...
    vitcod export --checkpoint MODEL --mask MASK --batch-size 4 --output planned.pt2 ...
    python benchmarks/exported.py --batch-size 4 --img-size 512 dense.pt2 masked.pt2 planned.pt2

The first file is what the others are compared with.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.runtime import RuntimeSettings, start


def runner(path: str, images: Tensor) -> Callable[[], None]:
    """One pass of the program at ``path``."""
    if path.endswith(".pt2"):
        program = torch.export.load(path).module()

        def run() -> None:
            with torch.inference_mode():
                program(images)

        return run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return lambda: session.run(None, feed)


def main() -> None:
    """Time the files interleaved, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    images = torch.randn(options.batch_size, 3, options.img_size, options.img_size)
    table = Table("", "MB", "ms", "middle half", f"times {Path(options.files[0]).name}")
    with start(RuntimeSettings(device="cpu")) as runtime:
        passes = [runner(path, images) for path in options.files]
        for run in passes:
            run()
        times = time_interleaved(passes, repeats=4, seconds=options.seconds, synchronize=runtime.synchronize)
    for path, seconds in zip(options.files, times, strict=True):
        spread, against = Spread.of([1e3 * value for value in seconds]), ratio(seconds, times[0])
        half = f"{spread.lower:,.0f} to {spread.upper:,.0f}"
        size = f"{Path(path).stat().st_size / 1e6:.0f}"
        table.add_row(Path(path).name, size, f"{spread.median:,.0f}", half, f"{against.median:.2f}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
