"""What it is worth that glibc keeps freed memory (vitcod_cli/runtime.py): passes with and without, interleaved.

    python benchmarks/kept_memory.py --model deit_tiny_patch16_224 --batch-size 32

Each round is a process of its own, as the setting can't be taken back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median
from time import perf_counter

from rich.console import Console
from rich.table import Table


def child(name: str, batch_size: int, mode: str, keep: bool) -> dict[str, float]:
    """Median seconds of a pass, page faults of one, peak MiB of the process."""
    from vitcod_cli import runtime
    from vitcod_cli.artifacts.model_config import ModelConfig
    from vitcod_cli.bench.workload import for_inference, forward_pass, make_optimizer, training_step
    from vitcod_cli.model.build import build_model, default_img_size

    if not keep:
        runtime._keep_freed_memory = lambda: None
    with runtime.start(runtime.RuntimeSettings(device="cpu")) as place:
        config = ModelConfig(
            model=name, num_classes=1000, img_size=default_img_size(name), svd_type="mix_head_fc_qk"
        )
        model = build_model(config)
        work = (
            forward_pass(for_inference(model), batch_size, place)
            if mode == "forward"
            else training_step(model, make_optimizer(model), batch_size, place)
        )
        with work as one:
            for _ in range(3):
                one.run()
            before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
            for _ in range(8):
                start = perf_counter()
                one.run()
                seconds.append(perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": median(seconds),
        "faults": (usage.ru_minflt - before) / len(seconds),
        "peak": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Rounds interleaved; the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, keep = options.child
        print(json.dumps(child(options.model, options.batch_size, mode, keep == "kept")))
        return
    table = Table("", "memory", "ms", "faults", "process MiB", "time / returned", title=options.model)
    for mode in ("forward", "training"):
        found: dict[str, list[dict[str, float]]] = {"returned": [], "kept": []}
        for _ in range(options.rounds):
            for keep, rounds in found.items():
                command = [sys.executable, __file__, "--model", options.model]
                command += ["--batch-size", str(options.batch_size), "--child", mode, keep]
                rounds.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(*found.values(), strict=True)]
        for keep, rounds in found.items():
            ms, faults, peak = (median(one[key] for one in rounds) for key in ("seconds", "faults", "peak"))
            share = f"{median(ratios):.2f}" if keep == "kept" else ""
            table.add_row(mode, keep, f"{1000 * ms:.0f}", f"{faults:,.0f}", f"{peak:,.0f}", share)
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
