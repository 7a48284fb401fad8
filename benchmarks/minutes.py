"""Low-rank and sparse in minutes, without labels: the README's first result table.

Types the commands that a user would type, one process each, and prints what each stage reaches and
how long it took (the process's whole time, start-up and final evaluation included):

    python benchmarks/minutes.py --checkpoint WEIGHTS --data-path IMAGENET --output-dir runs/minutes

Calibration sees pictures of train/ only and no label; every figure is of val/.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

MASKS = {"info": (), "allocated": ("--allocate",)}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    stage: str
    seed: int
    acc1: float | None
    loss: float | None
    seconds: float
    command: str


class Minutes:
    """The stages for one seed; every command and figure is kept in ``rows``."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.folder = Path(options.output_dir) / f"seed{seed}"
        self.common = ["--data-path", options.data_path, "--seed", str(seed), "--precision", options.precision]
        self.model = ["--model", options.model] if options.model else []
        self.rows: list[Row] = []

    def type(self, *words: str) -> tuple[dict[str, float], float, str]:
        """Run ``vitcod WORDS --json``; its answer, its time, and the command."""
        command = [sys.executable, "-m", "vitcod_cli", *words, "--json"]
        shown = shlex.join(["vitcod", *words])
        print(f"$ {shown}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout), time.perf_counter() - started, shown

    def add(self, stage: str, *words: str) -> None:
        """Run a command that ends in an evaluation, as a row of the table."""
        figures, seconds, shown = self.type(*words, *self.common)
        self.rows.append(Row(stage, self.seed, figures["acc1"], figures["loss"], seconds, shown))
        print(f"  {stage}: {figures['acc1']:.1f}, loss {figures['loss']:.4f}, {seconds:.0f} s", file=sys.stderr)

    def low_rank(self, stage: str, name: str, *words: str) -> Path:
        """One way to the low-rank model; returns its checkpoint."""
        out = self.folder / name
        start = ["--init-from", self.options.checkpoint, *self.model]
        run = ["--epochs", "0", "--overwrite", "--output-dir", str(out)]
        self.add(stage, "finetune-lowrank", *start, *words, *run)
        return out / "last.safetensors"

    def sparse(self, low_rank: Path, attention: Path, sparsity: float, mask: str, *words: str) -> None:
        """Mask the low-rank model, cold and calibrated; ``words`` go to gen-mask."""
        percent, name = f"{sparsity:.0%}", f"{mask}_{sparsity:.2f}"
        file = self.folder / f"{name}.safetensors"
        made = ("gen-mask", "--attn-map", str(attention), "--sparsity", str(sparsity), *words)
        self.type(*made, "--output", str(file), "--overwrite")
        cold = ("eval", "--checkpoint", str(low_rank), "--mask", str(file))
        self.add(f"{mask} mask at {percent}, no training", *cold)
        run = ["--epochs", "0", "--overwrite", "--output-dir", str(self.folder / name)]
        start = ["--init-from", str(low_rank), "--mask", str(file), "--distill-from", self.options.checkpoint]
        if self.options.calibrate_steps is not None:
            run += ["--calibrate-steps", str(self.options.calibrate_steps)]
        if self.options.calibrate_crops is not None:
            run += ["--calibrate-crops", str(self.options.calibrate_crops)]
        self.add(f"+ block-wise calibration ({mask}, {percent})", "finetune-sparse", *start, *run)

    def run(self) -> None:
        """All stages, in the order of the table."""
        self.add("dense", "eval", "--checkpoint", self.options.checkpoint, *self.model)
        no_steps = ("--calibrate-steps", "0")
        self.low_rank("low-rank, published initialisation", "trunc-normal", "--init", "trunc-normal", *no_steps)
        self.low_rank("PCA over heads", "pca", "--init", "pca", *no_steps)
        self.low_rank("head alignment (rotation)", "rotated", "--align-steps", "0", *no_steps)
        self.low_rank("+ fit to the logits", "aligned", *no_steps)
        best = self.low_rank("+ block-wise calibration", "calibrated")
        attention = self.folder / "attention.safetensors"
        self.dump(best, attention)
        for sparsity in self.options.sparsity:
            for mask in self.options.masks:
                self.sparse(best, attention, sparsity, mask, *MASKS[mask])

    def dump(self, low_rank: Path, attention: Path) -> None:
        """The attention map, with the importance of its entries."""
        words = ("dump-attn", "--checkpoint", str(low_rank), "--output", str(attention), "--overwrite")
        _, seconds, shown = self.type(*words, "--importance-images", "256", *self.common)
        self.rows.append(Row("attention map and importance", self.seed, None, None, seconds, shown))


def main() -> None:
    """Run all seeds, print the table, leave rows.json beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", help="timm name, when the checkpoint does not say it")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--output-dir", default="runs/minutes")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--calibrate-steps", type=int, help="of finetune-sparse, instead of its default")
    parser.add_argument("--calibrate-crops", type=int, help="of finetune-sparse, instead of its default")
    parser.add_argument("--masks", choices=list(MASKS), nargs="+", default=list(MASKS))
    options = parser.parse_args()

    rows: list[Row] = []
    for seed in options.seeds:
        stages = Minutes(options, seed)
        stages.run()
        rows += stages.rows
    table = Table("stage", "seed", "Acc@1", "loss", "seconds")
    for row in rows:
        figures = ("", "") if row.acc1 is None else (f"{row.acc1:.1f}", f"{row.loss:.3f}")
        table.add_row(row.stage, str(row.seed), *figures, f"{row.seconds:.0f}")
    Console(width=90).print(table)
    path = Path(options.output_dir) / "rows.json"
    path.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
