"""A training small enough for tests, also as a process of its own: ``python tiny.py FOLDER '{"epochs": 2}'``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitcod_cli import distributed
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.splits import Images
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.process_group import first_to_report
from vitcod_cli.reporting import Reporter, SilentReporter
from vitcod_cli.restarts import restarted
from vitcod_cli.runtime import RuntimeSettings, start
from vitcod_cli.training.options import FineTuneOptions
from vitcod_cli.training.recipe import Recipe
from vitcod_cli.training.result import FitResult
from vitcod_cli.training.trainer import prepare

RECIPE = {"epochs": 2, "batch_size": 8, "lr": 0.05, "warmup_epochs": 0, "cooldown_epochs": 0, "drop_path": 0.1}
NO_CHANCE = {"no_aug": True, "repeated_aug": False, "smoothing": 0.0}


class Colours(ImageData):
    """Noisy squares whose colour tells their class."""

    in_memory = True

    def __init__(self, length: int, seed: int) -> None:
        super().__init__(num_classes=5)
        random = np.random.default_rng(seed)
        self.targets = random.integers(0, 5, length)
        shades = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])
        noise = random.integers(0, 256, (length, 16, 16, 3))
        self.images = ((shades[self.targets][:, None, None] + noise) // 2).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def describe(self, index: int) -> str:
        return f"colour-{index}.png"


class Mishap(nn.Module):
    """Goes wrong in one training step: ``inf`` (a loss), ``sleep`` (a minute), ``kill`` (this process)."""

    def __init__(self, kind: str, step: int, rank: int = 0) -> None:
        super().__init__()
        self.kind, self.left = kind, step
        self.here = distributed.rank() == rank and not restarted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        if self.training and self.left == 0 and self.here:
            if self.kind == "inf":
                return x * float("inf")
            print(self.kind, file=sys.stderr, flush=True)
            if self.kind == "sleep":
                time.sleep(60)
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return x


def tiny_config(**changes: Any) -> ModelConfig:
    """A DeiT of 2 blocks, 2 heads and 5 tokens."""
    kwargs = {"patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    config = ModelConfig(model="deit_tiny_patch16_224", num_classes=5, img_size=(16, 16), model_kwargs=kwargs)
    return config.changed(**changes)


def train(
    folder: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    model: Any = None,
    teacher: nn.Module | None = None,
    train_images: int = 40,
    val_images: int = 21,
    augmentation: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    workers: int = 0,
    config: dict[str, Any] | None = None,
    train_data: ImageData | None = None,
    recipe_teacher: str | None = None,
    mishap: dict[str, Any] | None = None,
    **recipe: Any,
) -> tuple[FitResult, nn.Module]:
    """Train the tiny model on coloured squares in ``folder``; other arguments are the recipe's."""
    reporter = reporter or SilentReporter()
    settings = Recipe(**{**RECIPE, **recipe}, teacher=recipe_teacher)
    options = FineTuneOptions(
        recipe=settings,
        augmentation=AugmentationSettings(**(augmentation or {})),
        data=DataSettings(workers=workers),
        # In float32, so that no test depends on what the CPU is fast at.
        runtime=RuntimeSettings(
            **{"device": "cpu", "precision": "float32", "threads": 1, "deterministic": True, **(runtime or {})}
        ),
        output=OutputSettings(output_dir=str(folder), resume=resume),
    )
    train = train_data or Colours(train_images, seed=1)
    images = Images(train, Colours(val_images, seed=2), Preprocess((3, 16, 16), crop_pct=1.0), train)
    with start(options.runtime) as running:
        model = model or build_model(
            tiny_config(**{"svd_type": "mix_head_fc_qk", **(config or {})}), drop_path=settings.drop_path
        )
        if mishap is not None:
            model.head_drop = Mishap(**mishap)
        training = prepare(model, images, options, runtime=running, reporter=reporter, teacher=teacher)
        with RunDirectory.open(options.output, reporter) as run:
            result = training.run(run)
    return result, model


class Lines:
    """A reporter that prints, and tells where the training is."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.info(f"Warning: {text}")

    def progress(self, description: str, total: float | None, unit: str = "images") -> Any:
        return SilentReporter().progress(description, total, unit)


def main(folder: str, options: str = "{}") -> int:
    try:
        reporter = Lines() if distributed.is_main() else SilentReporter()
        train(Path(folder), reporter=reporter, **json.loads(options))
    except VitcodError as error:
        if first_to_report():
            print(f"Error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
