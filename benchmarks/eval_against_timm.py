"""``vitcod eval`` as a whole, from start-up to the score, against the same with timm alone; whole processes.

    python benchmarks/eval_against_timm.py --checkpoint WEIGHTS --model deit_tiny_patch16_224 --data-path IMAGENET

Of timm: ``create_model``, ``create_dataset``, ``create_loader`` with the model's own data configuration (crop as
here) and fused attention, in the same precision; labels are ImageNet's where folders are named by its classes.
``--compressed`` is a model to evaluate beside the dense one. A round is each of them once, in turn; the first
round isn't counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

CROP = 0.875


def with_timm(options: argparse.Namespace) -> float:
    """Acc@1 in %, as a short script of a user of timm would find it."""
    import timm
    import torch
    from safetensors.torch import load_file
    from timm.data.config import resolve_model_data_config
    from timm.data.dataset_factory import create_dataset
    from timm.data.imagenet_info import ImageNetInfo
    from timm.data.loader import create_loader

    model = timm.create_model(options.model)
    model.load_state_dict(load_file(options.checkpoint))
    model.eval()
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    dataset = create_dataset("folder", root=str(Path(options.data_path, "val")))
    names = sorted(path.name for path in Path(options.data_path, "val").iterdir() if path.is_dir())
    known = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    wnids = {name: index for index, name in enumerate(known)}
    labels = torch.tensor([wnids.get(name, index) for index, name in enumerate(names)])
    size = {name: config[name] for name in ("input_size", "mean", "std", "interpolation")}
    loader = create_loader(
        dataset, batch_size=options.batch_size, crop_pct=CROP, use_prefetcher=False, device=torch.device("cpu"),
        num_workers=options.workers, **size,
    )  # fmt: skip
    right = count = 0
    half = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16")
    with torch.inference_mode(), half:
        for images, targets in loader:
            right += int((model(images).argmax(dim=1) == labels[targets]).sum())
            count += len(images)
    return 100 * right / count


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """By the name in the table."""
    shared = ["--data-path", options.data_path, "--batch-size", str(options.batch_size)]
    shared += ["--precision", options.precision, "--workers", str(options.workers)]
    ours = [sys.executable, "-m", "vitcod_cli", "eval", *shared, "--crop-pct", str(CROP), "--json"]
    dense = ["--checkpoint", options.checkpoint, "--model", options.model]
    found = {
        "timm, dense": [sys.executable, __file__, "--child", *shared, *dense],
        "vitcod, dense": [*ours, *dense],
    }
    if options.compressed:
        found["vitcod, compressed"] = [*ours, "--checkpoint", options.compressed]
    return found


def main() -> None:
    """All rounds; a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="dense weights, .safetensors with timm's names")
    parser.add_argument("--model", required=True, help="timm name of the weights")
    parser.add_argument("--compressed", help="a checkpoint of vitcod")
    parser.add_argument("--data-path", required=True, help="its val/ is read")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({"acc1": with_timm(options)}))
        return
    seconds: dict[str, list[float]] = {}
    scores: dict[str, float] = {}
    for number in range(options.rounds + 1):
        for name, command in commands(options).items():
            started = time.perf_counter()
            output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
            taken = time.perf_counter() - started
            scores[name] = json.loads(output)["acc1"]
            if number:
                seconds.setdefault(name, []).append(taken)
    table = Table("", "Acc@1", "s, median", "times as fast as timm, median (all)", title=options.precision)
    [first, *_] = seconds.values()
    for name, own in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(first, own, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        table.add_row(name, f"{scores[name]:.1f}", f"{statistics.median(own):.1f}", spread)
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
