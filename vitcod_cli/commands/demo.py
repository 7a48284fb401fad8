"""``vitcod demo``: all four steps on real data, by the commands that a user would type."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

MODEL = "vit_tiny_patch16_224 --img-size 32 --model-kwargs patch_size=4 embed_dim=64 depth=3 num_heads=4"
DIGITS = "--dataset digits --batch-size 32 --threads 1"  # a model this small gains nothing from a second
# Digits have one way up and are few: the recipe for ImageNet is not for them.
RECIPE = "--no-aug --mixup 0 --cutmix 0 --smoothing 0 --drop-path 0 --no-repeated-aug --no-model-ema --unscale-lr"
CALIBRATION = "--calibrate-steps 50 --calibrate-images 256 --calibrate-crops 1 --calibrate-batch-size 32"
SPARSITIES = (50, 80, 90)


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Where the demonstration writes."""

    output_dir: str = setting(
        "vitcod-demo", "Folder for models, maps, masks and pictures.", panel="Output", metavar="FOLDER"
    )
    overwrite: bool = setting(False, "Replace what an earlier demonstration wrote there.", panel="Output")


def demo(*, settings: DemoSettings) -> None:
    """Train a small ViT on handwritten digits, and take it through the four steps.

    About three minutes on two CPU cores. Each command is shown before it runs; a table of accuracy,
    sparsity and attention arithmetic comes last.
    """
    folder = Path(settings.output_dir)
    if folder.exists() and any(folder.iterdir()) and not settings.overwrite:
        raise VitcodError(f"--output-dir {folder} is not empty; add --overwrite, or name another folder.")
    start, rows = time.monotonic(), Demonstration(folder).run()
    for line in table(rows):
        print(line)
    print(f"\n{time.monotonic() - start:.0f} s in all. In {folder}: the runs, attn.safetensors, the masks, and")
    print("plots/: the attention map and the 80 % mask of each block, side by side.", flush=True)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        sparsity: share of pruned attention entries.
        macs: multiply-accumulates of the two attention products for one image, kept entries only.
    """

    name: str
    acc1: float
    loss: float
    sparsity: float
    macs: int


class Demonstration:
    """The commands in turn, in one process: importing torch for each would take a third of the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self) -> list[Row]:
        """Run everything; returns the rows of the table."""
        rows = [
            self.train(
                "dense",
                "dense",
                f"finetune-dense --model {MODEL} weight_init=jax --epochs 14 --lr 3e-3 --warmup-lr 5e-4 "
                "--warmup-epochs 2",
            ),
            self.train(
                "low-rank, 4 heads -> 2",
                "lowrank",
                f"finetune-lowrank --init-from {self.path('dense/best.safetensors')} --epochs 1 --lr 1e-4 "
                f"--warmup-epochs 0 {CALIBRATION}",
            ),
        ]
        lowrank, attention = self.path("lowrank/best.safetensors"), self.path("attn.safetensors")
        self.vitcod(
            f"dump-attn --checkpoint {lowrank} --dataset digits --threads 1 --output {attention} --overwrite"
        )
        for sparsity in SPARSITIES:
            mask = self.path(f"mask-{sparsity}.safetensors")
            self.vitcod(f"gen-mask --attn-map {attention} --sparsity {sparsity / 100} --output {mask} --overwrite")
            name, folder = f"sparse, {sparsity} %", f"sparse-{sparsity}"
            line = f"finetune-sparse --init-from {lowrank} --mask {mask} --epochs 2 --lr 3e-4 --warmup-epochs 0"
            rows.append(self.train(name, folder, f"{line} {CALIBRATION}"))
        mask, plots = self.path("mask-80.safetensors"), self.path("plots")
        self.vitcod(f"plot {attention} {mask} --output-dir {plots} --overwrite")
        return rows

    def path(self, name: str) -> str:
        """A path in the demonstration's folder, as it is typed."""
        return shlex.quote(str(self.folder / name))

    def train(self, name: str, folder: str, line: str) -> Row:
        """Run one of the training commands into ``folder``; returns the line of its best model."""
        out = self.vitcod(f"{line} {DIGITS} {RECIPE} --output-dir {self.path(folder)} --overwrite --json")
        return self.row(name, json.loads(out), self.folder / folder)

    def vitcod(self, line: str) -> str:
        """Show and run one command line; returns what it prints on stdout."""
        from vitcod_cli.__main__ import main

        print(f"\n$ vitcod {line}", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = main(shlex.split(line))
        if code:
            raise SystemExit(code)  # the command has said why
        return out.getvalue()

    def row(self, name: str, result: dict[str, Any], run: Path) -> Row:
        """The line of a finished run: its own figures, and what its model's mask saves."""
        from vitcod_cli.masks.statistics import attention_macs
        from vitcod_cli.model.build import attention_shape, attentions, keep_mask
        from vitcod_cli.model.load import load_model
        from vitcod_cli.model.settings import ModelSettings
        from vitcod_cli.reporting import SilentReporter

        source = str(run / "best.safetensors")
        model = load_model(ModelSettings(), source, flag="--checkpoint", reporter=SilentReporter())
        mask = keep_mask(model)
        keep = None if mask is None else mask.numpy()
        macs = attention_macs(attention_shape(model), attentions(model)[0].head_dim, keep)
        sparsity = 0.0 if keep is None else 1 - float(keep.mean())
        return Row(name, result["acc1"], result["loss"], sparsity, macs)


def table(rows: list[Row]) -> list[str]:
    """The rows in aligned columns, 80 wide at most."""
    lines = ["", f"{'model':24} {'Acc@1':>7} {'loss':>7} {'sparsity':>10} {'attention MACs':>22}"]
    lines.append("-" * len(lines[-1]))
    for row in rows:
        share = f"{row.macs:,} ({row.macs / rows[0].macs:.0%})"
        lines.append(f"{row.name:24} {row.acc1:7.2f} {row.loss:7.3f} {row.sparsity:10.1%} {share:>22}")
    return lines
