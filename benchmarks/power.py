"""What compressing costs, on enough pictures to say so: every labelled set at hand, and all of them together.

    python benchmarks/power.py --dense deit_tiny.safetensors --output-dir runs/power \
        --data-path imagenet-sample imagenette-val imagewoof \
        --checkpoint "info 90 %=runs/info_0.90/best.safetensors" \
        --checkpoint "allocated 90 %=runs/seed0/best.safetensors" "allocated 90 %=runs/seed1/best.safetensors"

Each folder has ``val/`` with a folder a class, called by its wnid: labels are ImageNet's, and so must be the
heads, of 1000 classes. Checkpoints of one label are seeds of one recipe. Their figures are means over the seeds;
the interval of their difference to dense is over images, each with its mean over the seeds (seeds see the same
images, so that an image counts once, however many there are), and the seeds' own standard deviation stands beside
Acc@1. It is the interval of Agresti and Min, as in ``vitcod eval``.

Leaves power.md and power.json in the output folder, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.provenance import provenance, versions
from vitcod_cli.cli.console import console
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.labels import IMAGENET_CLASSES
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.evaluation.outcomes import Outcomes, compare, joined
from vitcod_cli.evaluation.paired import accuracy_interval, mean_interval, paired_difference
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import prepare_inference
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import Runtime, RuntimeSettings, start

DENSE, POOLED = "dense", "all"
Found = dict[str, list[Outcomes]]
"""The outcomes of each set, a model after the other; the first is the dense one."""


def measured(models: Sequence[Transformer], folders: Sequence[str], workers: int, runtime: Runtime) -> Found:
    """Outcomes of all models on ``val/`` of each folder, by the folder's name, and on all together."""
    preprocess = preprocess_of(models[0])
    if any(preprocess_of(model) != preprocess for model in models):
        sys.exit("The models take images of different sizes or normalisation; compare those of one architecture.")
    for model in models:
        runtime.prepare(model).eval()
        prepare_inference(model, runtime.dtype)
    found: Found = {}
    for folder in folders:
        data, name = DataSettings(data_path=folder), Path(folder).name
        images = open_dataset(data, "val", num_classes=IMAGENET_CLASSES, reporter=console())
        if images.num_classes != IMAGENET_CLASSES:
            sys.exit(f"{folder}: class folders must be called by their wnids, of ImageNet's 1000.")
        loader = eval_loader(
            images, preprocess, batch_size=32, workers=workers, device=runtime.device, reporter=console()
        )
        found[name] = compare(models, loader, runtime, console(), description=name)
    found[POOLED] = [joined([found[name][place] for name in found]) for place in range(len(models))]
    return found


def difference_of(seeds: Sequence[Outcomes], dense: Outcomes) -> dict[str, float]:
    """Points of Acc@1 to dense with the 95 % interval, and the same of the loss; see above.

    Of several seeds an image may be gained or lost in part; Agresti's and Min's interval, with half an image more
    of each of the four kinds, is the same sum of squares then.
    """
    if len(seeds) == 1:
        return paired_difference(seeds[0].hit1, dense.hit1, seeds[0].loss, dense.loss).to_dict()
    z, count = NormalDist().inv_cdf(0.975), len(dense)
    hits = np.mean([one.hit1 for one in seeds], axis=0) - dense.hit1
    middle = float(hits.sum()) / (count + 2)
    half = z * math.sqrt(max((float(np.square(hits).sum()) + 1) / (count + 2) - middle**2, 0) / (count + 2))
    losses = np.mean([one.loss for one in seeds], axis=0) - dense.loss
    loss_low, loss_high = mean_interval(losses)
    return {
        "points": 100 * float(hits.mean()),
        "low": 100 * max(middle - half, -1.0),
        "high": 100 * min(middle + half, 1.0),
        "loss": float(losses.mean()),
        "loss_low": loss_low,
        "loss_high": loss_high,
    }


def row(label: str, name: str, seeds: Sequence[Outcomes], dense: Outcomes) -> dict[str, Any]:
    """The figures of one label on one set."""
    each = [one.evaluation.acc1 for one in seeds]
    acc1 = float(np.mean(each))
    low, high = accuracy_interval(acc1, len(dense))
    return {
        "model": label,
        "set": name,
        "images": len(dense),
        "seeds": len(seeds),
        "acc1": acc1,
        "acc1_low": low,
        "acc1_high": high,
        "acc1_of_seeds": each,
        "acc1_std_of_seeds": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "loss": float(np.mean([one.loss.mean() for one in seeds])),
        "agreement": float(np.mean([one.agreement for one in seeds])),
        "kl": float(np.mean([one.kl for one in seeds])),
        "difference": None if label == DENSE else difference_of(seeds, dense),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, a line a row."""
    lines = [
        "| model | set | images | seeds | Acc@1 | to dense [95 %] | same choice | KL | loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        difference, spread = one["difference"], one["acc1_std_of_seeds"]
        acc1 = f"{one['acc1']:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        paired = (
            difference and f"{difference['points']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        )
        same = "" if difference is None else f"{one['agreement']:.1f} %"
        kl = "" if difference is None else f"{one['kl']:.3f}"
        cells = (one["model"], one["set"], f"{one['images']:,}", str(one["seeds"]), acc1, paired or "", same, kl)
        lines.append("| " + " | ".join([*cells, f"{one['loss']:.3f}"]) + " |")
    return "\n".join(lines) + "\n"


def checkpoints_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """The files of each label, of ``LABEL=PATH``."""
    found: dict[str, list[str]] = {}
    for text in texts:
        label, _, path = text.partition("=")
        if not label.strip() or not Path(path).is_file() or label == DENSE:
            sys.exit(f"--checkpoint {text}: give LABEL=PATH, a file, under another label than {DENSE}.")
        found.setdefault(label.strip(), []).append(path)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="the reference")
    parser.add_argument("--model", help="timm name, when the dense checkpoint does not say it")
    parser.add_argument("--checkpoint", nargs="+", action="extend", required=True, metavar="LABEL=PATH")
    parser.add_argument("--data-path", nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--output-dir", default="runs/power")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    labels = checkpoints_of(options.checkpoint)
    paths = [path for paths in labels.values() for path in paths]
    with start(RuntimeSettings(precision=options.precision)) as runtime:
        settings = ModelSettings(model=options.model)
        dense = load_model(settings, options.dense, flag="--dense", reporter=console())
        load = partial(load_model, ModelSettings(), reporter=console(), like=model_config(dense))
        others = [load(path, flag="--checkpoint") for path in paths]
        if any(model.num_classes != IMAGENET_CLASSES for model in (dense, *others)):
            sys.exit("Every model needs ImageNet's 1000 classes.")
        found = measured([dense, *others], options.data_path, options.workers, runtime)
    rows = []
    for name, outcomes in found.items():
        rows.append(row(DENSE, name, outcomes[:1], outcomes[0]))
        left = iter(outcomes[1:])
        rows += [row(label, name, [next(left) for _ in labels[label]], outcomes[0]) for label in labels]
    files = {DENSE: [options.dense], **labels}
    about = {label: [provenance("benchmarks/power.py", path) for path in files[label]] for label in files}
    content = {"precision": options.precision, "versions": versions(), "checkpoints": about, "rows": rows}
    folder, table = Path(options.output_dir), markdown(rows)
    for name, text in (("power.md", table), ("power.json", json.dumps(content, indent=2) + "\n")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
