"""Steps 1 and 4 on something tiny, stopped where a test wants it; also as ``python stopping.py JSON``."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

import vitcod_cli
from vitcod_cli import distributed
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, attentions, set_keep_mask
from vitcod_cli.reporting import Progress, SilentReporter
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.steps.lowrank import finetune_lowrank
from vitcod_cli.steps.options import LowRankOptions, SparseOptions
from vitcod_cli.steps.sparse import finetune_sparse
from vitcod_cli.training.recipe import LowRankRecipe, SparseRecipe

Step = Literal["lowrank", "sparse"]

BLOCKS, STEPS = 3, 4
CONFIG = ModelConfig(
    model="deit_tiny_patch16_224",
    num_classes=5,
    img_size=(32, 32),
    model_kwargs={"patch_size": 8, "embed_dim": 24, "depth": BLOCKS, "num_heads": 3},
)
CALIBRATION = {
    "calibrate_steps": STEPS,
    "calibrate_images": 12,
    "calibrate_crops": 2,
    "calibrate_batch_size": 4,
    "calibrate_lr": 1e-2,
}


class Stopper(SilentReporter):
    """Sends this process a signal when a piece of work begins, or has advanced ``steps`` times."""

    def __init__(self, number: int = signal.SIGTERM, at: str = "calibrate", steps: int = 0) -> None:
        super().__init__()
        self.number, self.at, self.left = number, at, steps
        self.begun: list[str] = []
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "images") -> Iterator[Progress]:
        self.begun.append(description)
        self.here = description == self.at
        self._count()
        yield self

    def advance(self, amount: float = 1, **metrics: float | str) -> None:
        self._count()

    def _count(self) -> None:
        if self.here:
            if self.left == 0:
                os.kill(os.getpid(), self.number)
            self.left -= 1


class Never(Stopper):
    """Sends none, and keeps the lines."""

    def __init__(self) -> None:
        super().__init__(at="")


def make_checkpoint(path: Path, masked: bool, seed: int = 0) -> str:
    """A model with lively attention, with a mask or without."""
    torch.manual_seed(seed)
    model = build_model(CONFIG)
    for layer in attentions(model):
        torch.nn.init.normal_(layer.qkv.weight, std=0.3)
        torch.nn.init.normal_(layer.proj.weight, std=0.3)
    if masked:
        keep = torch.rand(attention_shape(model), generator=torch.Generator().manual_seed(seed)) < 0.4
        set_keep_mask(model, keep | torch.eye(keep.shape[-1], dtype=torch.bool))
    vitcod_cli.save(model, path)
    return str(path)


def run(
    step: Step,
    checkpoint: str,
    images: Path,
    folder: Path,
    reporter: SilentReporter | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    recipe: dict[str, Any] | None = None,
    seed: int = 0,
    workers: int = 0,
    runtime: dict[str, Any] | None = None,
    lowrank: dict[str, Any] | None = None,
    **calibration: Any,
) -> None:
    """Run a step in ``folder``."""
    common: dict[str, Any] = {
        "init_from": checkpoint,
        "data": DataSettings(data_path=str(images), workers=workers),
        "output": OutputSettings(output_dir=str(folder), resume=resume, overwrite=overwrite),
        # In float32, so that no test depends on what the CPU is fast at.
        "runtime": RuntimeSettings(
            **{"device": "cpu", "precision": "float32", "threads": 1, "seed": seed, **(runtime or {})}
        ),
    }
    chosen, quick = {**CALIBRATION, **calibration}, {"epochs": 0, "batch_size": 4, **(recipe or {})}
    reporter = reporter or SilentReporter()
    if step == "lowrank":
        finetune_lowrank(
            LowRankOptions(
                lowrank=LowRankSettings(**{"align_steps": 3, **(lowrank or {})}),
                calibration=LowRankCalibrationSettings(**chosen),
                recipe=LowRankRecipe(**quick),
                **common,
            ),
            reporter,
        )
    else:
        options = SparseOptions(calibration=CalibrationSettings(**chosen), recipe=SparseRecipe(**quick), **common)
        finetune_sparse(options, reporter)


def figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = ("seconds", "images_per_second", "memory_mb", "loader_share")
    return [{key: value for key, value in line.items() if key not in measured} for line in lines]


def main(text: str) -> int:
    """One process of a run; what it has to say goes to stderr."""
    options = json.loads(text)
    stop = options.pop("stop", None)
    mine = stop is not None and stop.pop("rank") == distributed.rank()
    reporter = Stopper(**stop) if mine else Never()
    options.update(images=Path(options["images"]), folder=Path(options["folder"]))
    try:
        run(reporter=reporter, **options)
    except VitcodError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        if distributed.is_main():
            print(*reporter.lines, *reporter.warnings, sep="\n", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
