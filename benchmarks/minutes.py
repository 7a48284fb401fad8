"""Low-rank and sparse in minutes, without labels: what each step of it costs, in time and in accuracy.

Types the commands that a user would type, one process each, and then judges what each of them made on all labelled
pictures at hand, beside the dense model, by ``power.py``:

    python benchmarks/minutes.py --checkpoint WEIGHTS --data-path IMAGENET --calibrate-path IMAGENET UNLABELLED \
        --labelled IMAGENET imagenette-val imagewoof --output-dir runs/minutes

A time is that of the whole process, start-up and final evaluation on val/ of ``--data-path`` included. Calibration
sees no labels and no picture of val/. What was made before isn't made again: the same command leads to the end.
Leaves minutes.md and rows.json in the output folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from commands import python, vitcod
from power import DENSE, POOLED

from vitcod_cli.artifacts.files import atomic_path

MASKS = {"info": (), "allocated": ("--allocate",)}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        checkpoint: what was made; None of an attention map.
    """

    stage: str
    checkpoint: str | None
    seconds: float
    command: str


class Minutes:
    """The stages; every command and its time is kept in ``rows``."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.output_dir)
        self.common = ["--data-path", options.data_path, "--seed", str(options.seed)]
        self.common += ["--precision", options.precision]
        self.model = ["--model", options.model] if options.model else []
        self.calibration = list(options.calibrate)
        if options.calibrate_path:
            self.calibration += ["--calibrate-path", *options.calibrate_path]
        self.rows: list[Row] = []

    def type(self, stage: str, name: str, *words: str, made: Path, checkpoint: bool = True) -> None:
        """Run ``vitcod WORDS``, unless that was done before; what it made is a row."""
        done, command = self.folder / f"{name}.json", shlex.join(["vitcod", *words])
        before = json.loads(done.read_text(encoding="utf-8")) if done.exists() and made.exists() else None
        if before is None or before["command"] != command:
            started = time.perf_counter()
            vitcod(words, "--overwrite")
            seconds = time.perf_counter() - started
            row = Row(stage, str(made) if checkpoint else None, seconds, command)
            with atomic_path(done) as temporary:
                temporary.write_text(json.dumps(asdict(row), indent=2) + "\n", encoding="utf-8")
        self.rows.append(Row(**json.loads(done.read_text(encoding="utf-8"))))

    def train(self, stage: str, name: str, command: str, *words: str) -> Path:
        """A fine-tuning command without epochs; what it ends with."""
        out = self.folder / name
        made = out / "last.safetensors"
        run = ["--epochs", "0", "--output-dir", str(out), *self.common]
        self.type(stage, name, command, *words, *run, made=made)
        return made

    def low_rank(self, stage: str, name: str, *words: str) -> Path:
        """One way to the low-rank model."""
        start = ["--init-from", self.options.checkpoint, *self.model]
        return self.train(stage, name, "finetune-lowrank", *start, *words)

    def sparse(self, low_rank: Path, attention: Path, sparsity: float, mask: str, *words: str) -> None:
        """Mask the low-rank model, without calibration and with it; ``words`` go to gen-mask."""
        name = f"{mask}_{sparsity:.2f}"
        file = self.folder / f"{name}.safetensors"
        made = ["gen-mask", "--attn-map", str(attention), "--sparsity", str(sparsity), *words]
        vitcod([*made, "--output", str(file)], "--overwrite")
        start = ["--init-from", str(low_rank), "--mask", str(file)]
        cold = ["finetune-sparse", *start, "--calibrate-steps", "0"]
        stage = f"{100 * sparsity:g} % {mask} mask"
        self.train(f"{stage}, no calibration", f"{name}_cold", *cold)
        teacher = ["--distill-from", self.options.checkpoint, *self.calibration]
        self.train(f"{stage}, calibrated", f"{name}_calibrated", "finetune-sparse", *start, *teacher)

    def run(self) -> None:
        """All stages, in the order of the table."""
        no_steps = ("--calibrate-steps", "0")
        self.low_rank("low-rank, published initialisation", "trunc-normal", "--init", "trunc-normal", *no_steps)
        self.low_rank("PCA over heads", "pca", "--init", "pca", *no_steps)
        self.low_rank("heads rotated alike (Procrustes)", "rotated", "--align-steps", "0", *no_steps)
        self.low_rank("+ fitted to the attention logits", "aligned", *no_steps)
        best = self.low_rank("+ block-wise calibration", "calibrated")
        attention = self.folder / "attention.safetensors"
        words = ["dump-attn", "--checkpoint", str(best), "--output", str(attention), "--importance-images", "256"]
        stage = "attention map with importance"
        self.type(stage, "attention", *words, *self.common, made=attention, checkpoint=False)
        for sparsity in self.options.sparsity:
            for mask in self.options.masks:
                self.sparse(best, attention, sparsity, mask, *MASKS[mask])

    def table(self) -> str:
        """All rows, with the figures of ``power.py`` on all labelled pictures."""
        options = self.options
        made = [f"{row.stage}={row.checkpoint}" for row in self.rows if row.checkpoint]
        power = [str(Path(__file__).with_name("power.py")), "--dense", options.checkpoint]
        power += [*self.model, "--data-path", *(options.labelled or [options.data_path]), "--checkpoint", *made]
        power += ["--output-dir", str(self.folder / "power"), "--precision", options.precision]
        python(*power)
        content = json.loads((self.folder / "power" / "power.json").read_text(encoding="utf-8"))
        found = {row["model"]: row for row in content["rows"] if row["set"] == POOLED}
        lines = ["| | Acc@1 | to dense [95 %] | same choice | KL | time |", "|---|---|---|---|---|---|"]
        dense = found[DENSE]
        lines.append(f"| dense | {dense['acc1']:.1f} | | | | |")
        for row in self.rows:
            cells = ["", "", "", ""]
            if row.checkpoint:
                figures = found[row.stage]
                gap = figures["difference"]
                cells = [
                    f"{figures['acc1']:.1f}",
                    f"{gap['points']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]",
                    f"{figures['agreement']:.1f} %",
                    f"{figures['kl']:.3f}",
                ]
            lines.append("| " + " | ".join([row.stage, *cells, minutes(row.seconds)]) + " |")
        return "\n".join(lines) + "\n"


def minutes(seconds: float) -> str:
    """``34 s`` or ``5 min 33 s``."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest} s" if whole else f"{rest} s"


def main() -> None:
    """Run what is left of the stages, judge all of them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", help="timm name, when the checkpoint does not say it")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--labelled", nargs="+", metavar="FOLDER", help="to judge by; by default --data-path")
    parser.add_argument("--calibrate-path", nargs="+", metavar="FOLDER", help="of step 4")
    parser.add_argument("--calibrate", type=shlex.split, default=[], help="further arguments of step 4")
    parser.add_argument("--output-dir", default="runs/minutes")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--masks", choices=list(MASKS), nargs="+", default=list(MASKS))
    options = parser.parse_args()
    stages = Minutes(options)
    stages.folder.mkdir(parents=True, exist_ok=True)
    stages.run()
    table = stages.table()
    rows = json.dumps([asdict(row) for row in stages.rows], indent=2) + "\n"
    for name, text in (("minutes.md", table), ("rows.json", rows)):
        with atomic_path(stages.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
