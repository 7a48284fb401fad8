"""Epochs to accuracy on a small data set: the published way from noise, and calibration.

    python benchmarks/epochs.py --weights deit_tiny.safetensors --model deit_tiny_patch16_224 \
        --data-path imagewoof --output-dir runs/epochs --plot epochs.png

The weights get a head for the data's classes, and two epochs: "dense". From there both ways go to the same
sparsities, by commands that a user would type. All epochs are without what the recipe does against over-fitting in
300 epochs (``--recipe-args``; with all of it, ``--recipe-args=""``, the published way ends near chance):

- theirs: ``finetune-lowrank`` from the published random start without calibration, ``--epochs`` of the published
  recipe, with as large a share of warm-up; ``dump-attn``; ``gen-mask`` by info cut; ``finetune-sparse`` without
  calibration, as many epochs. Both steps are run at every learning rate of ``--lowrank-lr`` and ``--sparse-lr``,
  and the best on ``val/`` is gone on with, and drawn: their way is to be at its best. (With
  warm-up, from 20 epochs on, the first two have the rate that it starts from: DeiT's schedule is an epoch late.)
- ours: ``finetune-lowrank --epochs 0``, ``gen-mask --allocate``, ``finetune-sparse --epochs 0``, which calibrates,
  the last two by way of 75, 85 and 90 %, as ``compress`` does (``--via``); and, from there, ``--ours-epochs``
  under the mask at one learning rate, with labels.

What is finished isn't run again, and what was interrupted goes on: the same command leads to the end.
``--only ours-90 theirs-lowrank`` runs these parts, and what they need; ``--only`` alone runs nothing, and collects
what is finished. Leaves epochs.csv, a row for each epoch of each finished run, in the output folder.

To try it in minutes, on a model and a folder that are small:

    python benchmarks/epochs.py --weights tiny.safetensors --data-path few --output-dir try --epochs 1 \
        --ours-epochs 0 1 --lowrank-lr 1e-4 --sparse-lr 1e-4 --importance-images 4 --sparsities 0.5 \
        --training-args="--no-repeated-aug --workers 0" --calibrate-args="--calibrate-steps 2 --calibrate-images 8"
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from commands import vitcod

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.rows_file import write_rows
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.pipeline.options import VIA
from vitcod_cli.plots.files import save_figure

DENSE, THEIRS, OURS = "dense", "theirs", "ours"
COLORS = {THEIRS: "#d95f02", OURS: "#1f6fb4"}
NAMES = {THEIRS: "published way", OURS: "calibrated"}
STOP = "via"
"""The step of a model on the way to a sparser one, which no curve shows."""
WARMUP = 0.05
"""Share of the published epochs: 5 of 100."""
RECIPE_ARGS = "--mixup 0 --cutmix 0 --no-repeated-aug --aa none --reprob 0"

Row = dict[str, Any]


class Runs:
    """Commands that are run once; of what is finished, ``NAME.json`` says the command and its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, name: str, about: Row, *words: object) -> str:
        """A fine-tuning command into the folder ``name``, gone on with if it was begun; its best model.

        Args:
            about: columns of its rows.
        """
        run = self.folder / name
        begun = run.is_dir() and any(run.iterdir())
        self._once(name, [*words, "--output-dir", run], "--resume" if begun else None, about)
        return str(run / "best.safetensors")

    def make(self, name: str, *words: object) -> str:
        """A command that writes one file; its path."""
        path = self.folder / f"{name}.safetensors"
        self._once(name, [*words, "--output", path], "--overwrite")
        return str(path)

    def _once(self, name: str, words: Sequence[object], again: str | None, about: Row | None = None) -> None:
        done, command = self.folder / f"{name}.json", ["vitcod", *map(str, words)]
        if done.exists():
            if json.loads(done.read_text(encoding="utf-8"))["command"] != command:
                sys.exit(f"{done} is of another command; name another --output-dir, or remove it and its run.")
            return
        started = time.perf_counter()
        vitcod(command[1:], *([again] if again else []))
        seconds = round(time.perf_counter() - started, 1)
        content = {"command": command, "seconds": seconds, "about": about}
        with atomic_path(done) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def finished(self) -> dict[str, Row]:
        """Of the finished trainings, the columns of their rows."""
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("*.json")}
        return {name: content["about"] for name, content in sorted(found.items()) if content["about"]}

    def epochs(self, name: str) -> list[Row]:
        """What the training logged of each epoch; that of ``--epochs 0`` is epoch 0. Nothing if it isn't there."""
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if "epoch" in row and "acc1" in row]

    def best(self, names: Sequence[str]) -> str:
        """The training that has reached the highest accuracy."""
        return max(names, key=lambda name: max((row["acc1"] for row in self.epochs(name)), default=-1.0))


class Ways:
    """Both ways, as parts that can be run one by one; each runs what it needs first."""

    def __init__(self, options: argparse.Namespace, runs: Runs) -> None:
        self.options, self.runs = options, runs
        self.read: list[object] = ["--data-path", options.data_path, "--seed", options.seed]
        self.read += ["--precision", options.precision]
        extra = shlex.split(options.training_args)
        self.training = [*self.read, "--batch-size", options.batch_size, "--unscale-lr", "--no-model-ema", *extra]

    def parts(self) -> dict[str, Callable[[], object]]:
        """By the name that ``--only`` takes."""
        parts: dict[str, Callable[[], object]] = {
            DENSE: self.dense,
            f"{THEIRS}-lowrank": self.theirs_lowrank,
            f"{OURS}-lowrank": self.ours_lowrank,
        }
        for sparsity in self.options.sparsities:
            parts[f"{THEIRS}-{percent(sparsity)}"] = partial(self.theirs, sparsity)
            parts[f"{OURS}-{percent(sparsity)}"] = partial(self.ours, sparsity)
        return parts

    def dense(self) -> str:
        """The model that both ways start from."""
        options = self.options
        model = ["--model", options.model] if options.model else []
        classes = sum(path.is_dir() for path in Path(options.data_path, "train").iterdir())
        start: list[object] = ["--init-from", options.weights, *model, "--num-classes", classes]
        recipe: list[object] = ["--epochs", options.dense_epochs, "--lr", options.dense_lr, "--warmup-epochs", 0]
        recipe += shlex.split(options.recipe_args)
        about = about_of(DENSE, "dense", None, options.dense_lr, options.dense_epochs)
        return self.runs.train(DENSE, about, "finetune-dense", *start, *self.training, *recipe)

    def theirs_lowrank(self) -> str:
        """Step 1 from noise, at every learning rate; the best of them."""
        dense, epochs = self.dense(), self.options.epochs
        names = []
        for lr in self.options.lowrank_lr:
            names.append(f"{THEIRS}-lowrank-{lr:g}")
            recipe = self._published(lr, 5e-6)
            words = ["--init-from", dense, "--init", "trunc-normal", "--calibrate-steps", 0, *recipe]
            about = about_of(THEIRS, "lowrank", None, lr, epochs)
            self.runs.train(names[-1], about, "finetune-lowrank", *words, *self.training)
        return str(self.runs.folder / self.runs.best(names) / "best.safetensors")

    def theirs(self, sparsity: float) -> None:
        """Steps 2 to 4 as published, step 4 at every learning rate."""
        low_rank = self.theirs_lowrank()
        attention = self.runs.make(f"{THEIRS}-attn", "dump-attn", "--checkpoint", low_rank, *self.read)
        name = f"{THEIRS}-{percent(sparsity)}"
        mask = self.runs.make(f"{name}-mask", "gen-mask", "--attn-map", attention, "--sparsity", sparsity)
        for lr in self.options.sparse_lr:
            recipe = self._published(lr, 1e-5)
            words = ["--init-from", low_rank, "--mask", mask, "--calibrate-steps", 0, *recipe]
            about = about_of(THEIRS, "sparse", sparsity, lr, self.options.epochs, before=self.options.epochs)
            self.runs.train(f"{name}-{lr:g}", about, "finetune-sparse", *words, *self.training)

    def _published(self, lr: float, min_lr: float) -> list[object]:
        epochs = self.options.epochs
        warmup = int(WARMUP * epochs)
        words = ["--epochs", epochs, "--warmup-epochs", warmup, "--lr", lr, "--min-lr", min(lr, min_lr)]
        return [*words, *shlex.split(self.options.recipe_args)]

    def ours_lowrank(self) -> str:
        """Step 1 without training."""
        words = ["--init-from", self.dense(), "--epochs", 0]
        about = about_of(OURS, "lowrank", None, None, 0)
        return self.runs.train(f"{OURS}-lowrank", about, "finetune-lowrank", *words, *self.training)

    def ours(self, sparsity: float) -> None:
        """Steps 2 to 4 with importance and calibration; the trainings go on from the calibrated model.

        As ``vitcod compress`` does it: by way of those of ``--via`` that are less sparse, in half of the steps.
        """
        options = self.options
        start, attention = self.ours_lowrank(), self._attention(self.ours_lowrank(), f"{OURS}-attn")
        half = ["--calibrate-steps", (CalibrationSettings().calibrate_steps + 1) // 2]
        for share in sorted(options.via):
            if 0 < share < sparsity:
                name = f"{OURS}-via-{percent(share)}"
                start = self._calibrated(name, start, attention, share, *half, step=STOP)
                attention = self._attention(start, f"{name}-attn")
        name = f"{OURS}-{percent(sparsity)}"
        calibrated = self._calibrated(name, start, attention, sparsity)
        for epochs in options.ours_epochs:
            if epochs:
                begin = ["--init-from", calibrated, "--calibrate-steps", "0"]
                recipe = ["--epochs", epochs, "--warmup-epochs", 0, "--lr", options.ours_lr]
                recipe += shlex.split(options.recipe_args)
                about = about_of(OURS, "sparse", sparsity, options.ours_lr, epochs)
                self.runs.train(f"{name}-{epochs}", about, "finetune-sparse", *begin, *recipe, *self.training)

    def _attention(self, checkpoint: str, name: str) -> str:
        importance = ["--importance-images", self.options.importance_images]
        return self.runs.make(name, "dump-attn", "--checkpoint", checkpoint, *importance, *self.read)

    def _calibrated(
        self, name: str, start: str, attention: str, sparsity: float, *words: object, step: str = "sparse"
    ) -> str:
        """The model under an allocated mask; ``words`` may be overridden by those of the command line."""
        generate = ["gen-mask", "--attn-map", attention, "--sparsity", sparsity, "--allocate"]
        mask = self.runs.make(f"{name}-mask", *generate)
        words = ("--init-from", start, "--mask", mask, *words, *shlex.split(self.options.calibrate_args))
        about = about_of(OURS, step, sparsity, None, 0)
        teacher = ["--distill-from", self.dense(), *self.training]
        return self.runs.train(f"{name}-0", about, "finetune-sparse", *words, "--epochs", 0, *teacher)


def percent(sparsity: float) -> str:
    """``90``: of the names of parts and runs."""
    return f"{100 * sparsity:g}"


def about_of(
    way: str, step: str, sparsity: float | None, lr: float | None, epochs: int, *, before: int = 0
) -> Row:
    """The columns of a run; ``before``: epochs of training that the step before it took."""
    return {"way": way, "step": step, "sparsity": sparsity, "lr": lr, "epochs": epochs, "epochs_before": before}


def collect(runs: Runs) -> list[Row]:
    """A row for each epoch of each finished run."""
    return [
        {
            "run": name,
            **about,
            "epoch": row["epoch"],
            "epochs_in_all": about["epochs_before"] + row["epoch"],
            **{figure: row.get(figure) for figure in ("acc1", "acc5", "loss", "train_loss", "seconds")},
        }
        for name, about in runs.finished().items()
        for row in runs.epochs(name)
    ]


def draw(rows: Sequence[Row], sparsities: Sequence[float], path: str, scale: str) -> None:
    """Accuracy over all epochs of training, a panel for each sparsity."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(1 + 5 * len(sparsities), 4.6), dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(sparsities), squeeze=False, sharey=True)[0]
    dense = max((row["acc1"] for row in rows if row["way"] == DENSE), default=None)
    for axes, sparsity in zip(panels, sparsities, strict=True):
        if dense is not None:
            axes.axhline(dense, color="black", linestyle="--", linewidth=1.2, label=f"dense ({dense:.1f})")
        for way, name, line, points in (
            (THEIRS, f"{NAMES[THEIRS]}: low-rank heads", ":", _best_run(rows, None)),
            (THEIRS, f"{NAMES[THEIRS]}: then the mask", "-", _best_run(rows, sparsity)),
            (OURS, NAMES[OURS], "-", _last_epochs(rows, sparsity)),
        ):
            if points:
                places = [row["epochs_in_all"] for row in points]
                values = [row["acc1"] for row in points]
                label = f"{name} ({max(values):.1f})"
                axes.plot(places, values, line, color=COLORS[way], marker="o", markersize=4, label=label)
        axes.set_title(f"{100 * sparsity:g} % pruned")
        axes.set_xlabel("epochs of training, both steps")
        if scale == "log":
            axes.set_xscale("symlog", linthresh=1)
            axes.set_xlim(left=-0.1)
            most = axes.get_xlim()[1]
            ticks = [tick for tick in (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if tick <= most]
            axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
            axes.set_xticks([], minor=True)
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="best", fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("Acc@1 in %")
    save_figure(figure, path, Path(path).suffix[1:].lower())


def _best_run(rows: Sequence[Row], sparsity: float | None) -> list[Row]:
    """All their epochs at the learning rate that got highest; of the low-rank step, where no sparsity is given."""
    theirs = [row for row in rows if (row["way"], row["sparsity"]) == (THEIRS, sparsity)]
    best = max(theirs, key=lambda row: float(row["acc1"]), default=None)
    return [row for row in theirs if best is not None and row["run"] == best["run"]]


def _last_epochs(rows: Sequence[Row], sparsity: float) -> list[Row]:
    """The end of each of our runs, whose schedules are of different lengths."""
    ours = [row for row in rows if (row["way"], row["step"], row["sparsity"]) == (OURS, "sparse", sparsity)]
    return sorted((row for row in ours if row["epoch"] == row["epochs"]), key=lambda row: int(row["epochs"]))


def main() -> None:
    """Run what is left of the parts, collect, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="of the dense model, with any head")
    parser.add_argument("--model", help="timm name, when the weights do not say it")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--output-dir", default="runs/epochs")
    parser.add_argument(
        "--only", nargs="*", metavar="PART", help="dense, theirs-lowrank, ours-lowrank, ours-90, ..."
    )
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--epochs", type=int, default=30, help="of each of their two steps")
    parser.add_argument("--lowrank-lr", type=float, nargs="+", default=[2e-5, 5e-5, 1e-4, 2e-4, 5e-4])
    parser.add_argument("--sparse-lr", type=float, nargs="+", default=[1e-5, 2e-5, 5e-5, 1e-4, 2e-4])
    parser.add_argument("--ours-epochs", type=int, nargs="+", default=[0, 1, 3, 5])
    parser.add_argument("--ours-lr", type=float, default=2e-5)
    parser.add_argument("--dense-epochs", type=int, default=2)
    parser.add_argument("--dense-lr", type=float, default=5e-5)
    parser.add_argument("--recipe-args", default=RECIPE_ARGS, help="further arguments of all epochs of training")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--via", type=float, nargs="+", default=list(VIA), help="on our way to sparser masks; 0: none"
    )
    parser.add_argument("--importance-images", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--training-args", default="", help="further arguments of all fine-tuning commands")
    parser.add_argument("--calibrate-args", default="", help="further arguments of our calibration in step 4")
    parser.add_argument("--plot", metavar="FILE", help=".png, .pdf or .svg")
    parser.add_argument(
        "--scale", choices=["log", "linear"], default="linear", help="of the epochs in the picture"
    )
    options = parser.parse_args()
    runs = Runs(Path(options.output_dir))
    ways = Ways(options, runs)
    parts = ways.parts()
    for name in parts if options.only is None else options.only:
        if name not in parts:
            parser.error(f"--only {name}: there are {', '.join(parts)}")
    runs.folder.mkdir(parents=True, exist_ok=True)
    for name in parts if options.only is None else options.only:
        parts[name]()
    rows = collect(runs)
    if not rows:
        sys.exit("Nothing has been trained yet.")
    write_rows(runs.folder / "epochs.csv", rows)
    if options.plot:
        draw(rows, options.sparsities, options.plot, options.scale)


if __name__ == "__main__":
    main()
