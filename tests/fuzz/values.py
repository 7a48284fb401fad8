"""Values that people type, or paste, behind options; and command lines that are none."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fuzz.case import Attempt, Bench, Check, Done, Make
from fuzz.checkpoints import DATA
from fuzz.facts import holds_mask, known, pruned
from fuzz.odd_values import TITLES, VALUES, command_lines

_EVAL = ("eval", "--checkpoint={assets}/dense.safetensors", *DATA)
_MASK = ("gen-mask", "--attn-map={assets}/map.npy", "--output=out.safetensors")
_TRAIN = ("finetune-dense", "--init-from={assets}/dense.safetensors", *DATA, "--epochs=0", "--output-dir=run")
_LOWRANK = ("finetune-lowrank", *_TRAIN[1:], "--calibrate-steps=0")
_DUMP = ("dump-attn", "--checkpoint={assets}/dense.safetensors", *DATA[:2], "--output=out.safetensors")


def _dense(bench: Bench, _: str) -> Check:
    return known(bench.assets, "dense")


def _finite(bench: Bench, _: str) -> Check:
    """A result of finite numbers, and all images counted."""

    def check(done: Done) -> None:
        result = json.loads(done.out)
        assert all(math.isfinite(result[name]) for name in ("acc1", "acc5", "loss")), f"not finite: {result}"
        assert result["images"] == 10, f"{result['images']} of 10 images"

    return check


def _cut(bench: Bench, value: str) -> Check:
    return holds_mask("out.safetensors", pruned(np.load(bench.assets / "map.npy"), float(value)))


def _some_mask(bench: Bench, _: str) -> Check:
    from fuzz.safetensors_files import contents

    def check(done: Done) -> None:
        tensors, info = contents(done.folder / "out.safetensors")
        keep = tensors["keep"]
        assert bool(keep.any(-1).all()), "a row keeps nothing"
        assert abs(info["sparsity"] - (1 - keep.double().mean().item())) < 1e-6, "the sparsity is another one"

    return check


def _some_map(bench: Bench, _: str) -> Check:
    from fuzz.checkpoints import _written_map

    return _written_map(bench, None)


def _fine(bench: Bench, _: str) -> Check:
    return lambda done: None


Line = tuple[tuple[str, ...], Sequence[str], Any, tuple[str, ...]]

LINES: list[Line] = [
    # What changes nothing of the result.
    (
        _EVAL,
        [
            "batch-size",
            "workers",
            "threads",
            "seed",
            "max-bad-images",
            "precision",
            "train-split",
            "device",
            "num-classes",
            "img-size",
            "model",
            "split",
            "val-split",
            "dataset",
            "mask",
            "checkpoint",
            "data-path",
            "class-map",
            "config",
            "use-ema",
            "json",
            "compile",
            "deterministic",
            "nproc-per-node",
        ],
        _dense,
        (),
    ),
    (_EVAL, ["crop-pct", "interpolation", "model-kwargs"], _finite, ()),
    ((*_MASK, "--num-prefix-tokens=1"), ("info-cut",), _cut, ("out.safetensors",)),
    (
        _MASK,
        ("sparsity", "num-prefix-tokens", "method", "attn-map", "protect-prefix"),
        _some_mask,
        ("out.safetensors",),
    ),
    ((*_MASK, "--method=ratio"), ("ratio", "sparsity"), _some_mask, ("out.safetensors",)),
    ((*_MASK, "--method=std"), ("std-coef", "coef"), _some_mask, ("out.safetensors",)),
    ((*_MASK, "--method=random"), ("seed", "ratio"), _some_mask, ("out.safetensors",)),
    (
        _TRAIN,
        [
            "batch-size",
            "eval-batch-size",
            "accumulate-steps",
            "lr",
            "min-lr",
            "warmup-lr",
            "warmup-epochs",
            "cooldown-epochs",
            "decay-epochs",
            "decay-rate",
            "opt",
            "opt-eps",
            "opt-betas",
            "momentum",
            "weight-decay",
            "clip-grad",
            "sched",
            "drop-path",
            "model-ema-",
            "decay",
            "recon-weight",
            "distill",
            "teacher",
            "distill-alpha",
            "distill-tau",
            "distill-from",
            "save-every",
            "skip-nonfinite",
            "log-to",
            "color-jitter",
            "aa",
            "hflip",
            "num-aug-repeats",
            "reprob",
            "remode",
            "recount",
            "smoothing",
            "mixup",
            "cutmix",
            "mixup-prob",
            "mixup-switch-prob",
            "mixup-mode",
            "max-steps",
            "eval-every",
            "train-interpolation",
            "init-from",
            "dataset",
            "model-kwargs",
        ],
        _finite,
        ("run",),
    ),
    (_TRAIN, ["scale", "ratio"], _finite, ("run",)),
    (_LOWRANK, ["svd-type", "calibrate-images", "calibrate-lr", "calibrate-crops", "seed"], _finite, ("run",)),
    (
        _DUMP,
        ["max-images", "importance-images", "late-weight", "batch-size", "transform", "split"],
        _some_map,
        ("out.safetensors",),
    ),
    (("plot", "--output-dir=out", "{assets}/map.npy"), ("title",), _fine, ("out",)),
    (
        ("convert", "--output=out.safetensors", "{assets}/published.pth"),
        ("to", "model", "num-classes", "img-size", "mask"),
        _fine,
        ("out.safetensors",),
    ),
]


def _value(bench: Bench) -> Attempt:
    """One option of a command with one odd value."""
    options = [(line, option) for line in LINES for option in line[1]]
    (words, _, check, outputs), option = bench.turn(options)
    value = bench.any(TITLES if option == "title" and bench.number % 2 else VALUES)
    line = [word.format(assets=bench.assets) for word in words]
    if option in ("scale", "ratio") and words is _TRAIN:
        given = [f"--{option}", value, bench.any(VALUES)]
    else:
        given = [f"--{option}={value}"] if bench.random.random() < 0.7 else [f"--{option}", value]
    if option in ("batch-size", "workers", "threads", "nproc-per-node") and _is_large(value):
        given = [f"--{option}=-7"]  # what is asked for is done, as far as the machine has it
    line[1:1] = given
    return Attempt(line, _or_nothing(check, bench, value), outputs=outputs)


def _is_large(value: str) -> bool:
    try:
        return 8 < float(value) < 2**40
    except ValueError:
        return False


def _or_nothing(check: Any, bench: Bench, value: str) -> Check:
    def later(done: Done) -> None:
        check(bench, value)(done)

    return later


def _line(bench: Bench) -> Attempt:
    """Command lines that are none: unknown commands and options, values that are missing, too many words."""
    return Attempt(bench.turn(command_lines(str(bench.assets))))


OPTIONS: dict[str, Make] = {
    "values": _value,
    "values again": _value,
    "values more": _value,
    "command lines": _line,
}
