"""What a block is fitted to, by its place: the same start calibrated in several ways.

    python benchmarks/fit_variants.py --checkpoint runs/0/via_0.75/best.safetensors \
        --mask runs/0/allocated_0.90.safetensors --teacher WEIGHTS --model deit_tiny_patch16_224 \
        --calibrate-path IMAGENET UNLABELLED --output-dir runs/variants \
        --variant before=ahead:1,late_rate:1,late_class_share:0 now= deeper=ahead:4

A variant is a label and what of ``vitcod_cli.calibration.depth.Depth`` is otherwise. Each leaves
OUT/LABEL.safetensors, for ``benchmarks/power.py``, and a line: the divergence (KL) from the teacher on 256 of the
pictures that it was fitted to and on 256 that were held out. The difference is what it has learnt by heart.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.calibration.blockwise import calibrate
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.fit import HELD_OUT
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.cli.console import console
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.unlabelled import open_all
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import Runtime, RuntimeSettings, start
from vitcod_cli.steps.setup import read_crops

JUDGED = 256
"""Pictures of each kind that are judged."""


def variant(text: str) -> tuple[str, Depth]:
    """Of ``LABEL=KEY:VALUE,...``."""
    label, _, changes = text.partition("=")
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Depth)}
    try:
        pairs = dict(pair.split(":") for pair in changes.split(",") if pair)
        return label, Depth(**{name: kinds[name](value) for name, value in pairs.items()})
    except (KeyError, ValueError):
        sys.exit(f"--variant {text}: give LABEL=KEY:VALUE,..., of {', '.join(kinds)}.")


@torch.inference_mode()
def divergence(
    model: Transformer, teacher: Transformer, images: CalibrationImages, indices: Tensor, runtime: Runtime
) -> float:
    """Mean KL(teacher || model) on some of the images, in nats."""
    total = 0.0
    for part in torch.split(indices, 32):
        with runtime.autocast():
            batch = images.tensor(part)
            wanted, given = (one(batch).float().log_softmax(dim=-1) for one in (teacher, model))
        total += float((wanted.exp() * (wanted - given)).sum())
    return total / len(indices)


def main() -> None:
    """Fit each, judge, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="of a model that the mask will be put on")
    parser.add_argument("--mask", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--model", help="timm name, when the teacher's weights do not say it")
    parser.add_argument("--calibrate-path", nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--calibrate-images", type=int, default=CalibrationSettings().calibrate_images)
    parser.add_argument("--calibrate-crops", type=int)
    parser.add_argument("--calibrate-steps", type=int, default=CalibrationSettings().calibrate_steps)
    parser.add_argument("--calibrate-lr", type=float, default=CalibrationSettings().calibrate_lr)
    parser.add_argument("--variant", nargs="+", action="extend", required=True, metavar="LABEL=KEY:VALUE,...")
    parser.add_argument("--output-dir", default="runs/variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    variants = dict(map(variant, options.variant))
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = CalibrationSettings(
        calibrate_images=options.calibrate_images,
        calibrate_crops=options.calibrate_crops,
        calibrate_steps=options.calibrate_steps,
        calibrate_lr=options.calibrate_lr,
    )
    reporter = console()
    with start(RuntimeSettings(seed=options.seed, precision=options.precision)) as runtime:
        settings_of_teacher = ModelSettings(model=options.model)
        teacher = load_model(settings_of_teacher, options.teacher, flag="--teacher", reporter=reporter)
        begin = load_model(
            ModelSettings(), options.checkpoint, flag="--checkpoint", reporter=reporter, mask=options.mask
        )
        runtime.prepare(teacher).eval()
        runtime.prepare(begin).eval()
        found = open_all(options.calibrate_path, "--calibrate-path", reporter)
        crops = settings.crops(min(settings.calibrate_images, len(found)))
        images = read_crops(
            found, preprocess_of(begin), settings.calibrate_images, crops,
            workers=1, runtime=runtime, reporter=reporter,
        )  # fmt: skip
        first = torch.arange(len(images) // crops)
        is_held = first % HELD_OUT == 1
        groups = first[~is_held][:JUDGED], first[is_held][:JUDGED]
        for label, depth in variants.items():
            student, begun = copy.deepcopy(begin), time.monotonic()
            calibrate(
                student, teacher, images, settings,
                scope="block", runtime=runtime.for_training, reporter=reporter, depth=depth,
            )  # fmt: skip
            seconds = time.monotonic() - begun
            fitted, held = (divergence(student.eval(), teacher, images, group, runtime) for group in groups)
            info = provenance("benchmarks/fit_variants.py", options.checkpoint)
            save_model(folder / f"{label}.safetensors", student, info)
            print(f"{label}: KL {fitted:.3f} fitted, {held:.3f} held out, {seconds:.0f} s; {depth}", flush=True)


if __name__ == "__main__":
    main()
