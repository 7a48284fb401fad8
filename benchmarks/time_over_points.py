"""When a mask is worth it on this machine: time saved over points lost, for masks of several kinds and sparsities.

    vitcod dump-attn --checkpoint WEIGHTS --img-size 512 --data-path IMAGENET --max-images 64 \
        --importance-images 32 --late-weight 1 --output a512.safetensors
    python benchmarks/time_over_points.py --checkpoint WEIGHTS --img-size 512 --attn-map a512.safetensors \
        --data-path IMAGENET --output-dir runs/time --plot time.png

Makes each mask with ``gen-mask``, times the model under it against itself without one (``bench``), and evaluates
all on the same images (``eval``). ``--calibrate`` runs ``finetune-sparse --epochs 0`` under each first, with these
arguments. What is made or measured isn't again: the same command goes on, and ``--no-time`` leaves the timing to a
later call, on a machine that does nothing else. A folder holds results of the same options only (settings.json).
Leaves time_over_points.csv in the output folder, and prints it.

A mask is worth its points where no other of less time has lost fewer.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commands import vitcod

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.rows_file import write_rows
from vitcod_cli.plots.files import save_figure

KINDS: dict[str, tuple[str, list[str]]] = {
    "info": ("info", []),
    "allocated": ("allocated", ["--allocate"]),
    "groups16": ("allocated, 16 queries share keys", ["--allocate", "--block", "16", "--block-keys", "1"]),
    "groups32": ("allocated, 32 queries share keys", ["--allocate", "--block", "32", "--block-keys", "1"]),
    "groups64": ("allocated, 64 queries share keys", ["--allocate", "--block", "64", "--block-keys", "1"]),
    "tiles16": ("allocated tiles of 16", ["--allocate", "--block", "16"]),
    "tiles32": ("allocated tiles of 32", ["--allocate", "--block", "32"]),
    "tiles64": ("allocated tiles of 64", ["--allocate", "--block", "64"]),
}
COLORS = dict(
    zip(
        KINDS,
        ("#7f7f7f", "#1f6fb4", "#f4a3c8", "#e7298a", "#8e0152", "#e6ab02", "#d95f02", "#7570b3"),
        strict=True,
    )
)

Row = dict[str, Any]


def result(*words: object) -> dict[str, Any]:
    """What a command gives with ``--json``."""
    found: dict[str, Any] = json.loads(vitcod([*words, "--json"]))
    return found


class Masks:
    """The masks, and the model under each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.output_dir)
        self.model: list[object] = ["--img-size", options.img_size]
        self.model += ["--model", options.model] if options.model else []

    def open(self) -> None:
        """Make the folder, or see that what is in it was made with these options."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, options = self.folder / "settings.json", vars(self.options)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        asked = {name: options[name] for name in (*DECIDE, *(() if self.options.no_time else DECIDE_TIME))}
        other = [name for name, value in asked.items() if known.get(name, value) != value]
        if other:
            flags = ", ".join(f"--{name.replace('_', '-')} {known[name]}" for name in other)
            sys.exit(f"{self.folder} holds results of {flags}; give that, or name another --output-dir.")
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({**known, **asked}, indent=2) + "\n", encoding="utf-8")

    def mask(self, kind: str, sparsity: float) -> Path | None:
        """None where the map can't give it."""
        path = self.folder / f"{kind}_{100 * sparsity:g}.safetensors"
        if not path.exists():
            words = ["--attn-map", self.options.attn_map, "--sparsity", sparsity, *KINDS[kind][1]]
            try:
                vitcod(["gen-mask", *words, "--output", path])
            except subprocess.CalledProcessError:
                return None
        return path

    def checkpoint(self, mask: Path) -> tuple[object, ...]:
        """Options for the model under a mask, calibrated where that is wanted."""
        options = self.options
        if options.calibrate is None:
            return ("--checkpoint", options.checkpoint, *self.model, "--mask", mask)
        run = self.folder / f"calibrated_{mask.stem}"
        best = run / "best.safetensors"
        if not best.exists():
            words = ("--init-from", options.checkpoint, *self.model, "--mask", mask, "--epochs", 0)
            more = shlex.split(options.calibrate)
            vitcod(["finetune-sparse", *words, "--data-path", options.data_path, *more, "--output-dir", run])
        return ("--checkpoint", best)

    def once(self, mask: Path, what: Callable[[Path], Row]) -> Row:
        """What a method of this finds for a mask; of an earlier call where there was one."""
        kept = self.folder / f"{mask.stem}_{what.__name__}.json"
        if not kept.exists():
            found = json.dumps(what(mask))
            with atomic_path(kept) as temporary:
                temporary.write_text(found, encoding="utf-8")
        row: Row = json.loads(kept.read_text(encoding="utf-8"))
        return row

    def time_ratio(self, mask: Path) -> Row:
        """Of the model under a mask to itself without one."""
        options = self.options
        measure = ("--no-training", "--batch-size", options.batch_size, "--seconds", options.seconds)
        found = result("bench", *self.checkpoint(mask), *measure, "--precision", options.precision)
        [one] = [each for each in found["comparisons"] if each["against"] == "no mask"]
        return {name: round(one[name], 4) for name in ("time_ratio", "time_ratio_q1", "time_ratio_q3")}

    def quality(self, mask: Path) -> Row:
        """Of the model under a mask, beside the dense one."""
        options = self.options
        data = ["--data-path", options.data_path, "--precision", options.precision]
        data += ["--val-images", options.val_images] if options.val_images else []
        found = result("eval", *self.checkpoint(mask), "--against", options.checkpoint, *data)["models"][-1]
        difference = found["difference"]
        points = {f"points{end}": round(difference[name], 2) for end, name in ENDS.items()}
        figures = {name: round(found[name], 4) for name in ("sparsity", "acc1", "loss", "agreement", "kl")}
        return {"images": found["images"], **figures, **points}


ENDS = {"": "points", "_low": "low", "_high": "high"}

DECIDE = ("checkpoint", "model", "img_size", "attn_map", "data_path", "calibrate", "val_images", "precision")
DECIDE_TIME = ("batch_size", "seconds")
"""Options that the figures of a folder depend on; the latter those of its times."""


def read_rows(folder: str) -> tuple[int, list[Row]]:
    """Image size and rows of a folder that another call has left."""
    with Path(folder, "time_over_points.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    if any(not line.get("time_ratio") for line in lines):
        sys.exit(f"{folder} has rows without a time; run its command again without --no-time.")
    rows = [{name: value if name == "kind" else float(value) for name, value in line.items()} for line in lines]
    return int(json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))["img_size"]), rows


def draw(panels: Sequence[tuple[str, Sequence[Row]]], path: str) -> None:
    """Time over points lost, a line for each kind of mask; a panel for each title."""
    from matplotlib.figure import Figure

    width = 7.2 if len(panels) == 1 else 5.4 * len(panels)
    figure: Any = Figure(figsize=(width, 4.8), dpi=120, facecolor="white", layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
    ):
        for kind, (label, _) in KINDS.items():
            own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: float(row["sparsity"]))
            if not own:
                continue
            lost, times = [-row["points"] for row in own], [row["time_ratio"] for row in own]
            axes.plot(lost, times, color=COLORS[kind], marker="o", markersize=4, label=label)
            for row, x, y in zip(own, lost, times, strict=True):
                axes.annotate(
                    f"{100 * row['sparsity']:.0f} %", (x, y), (4, 4), textcoords="offset points", fontsize=8
                )
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
        axes.margins(x=0.09)  # room for the last label
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set(xlabel="points of Acc@1 lost", title=title)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("time, as a share of that without a mask")
    save_figure(figure, path, Path(path).suffix[1:].lower())


def main() -> None:
    """Make, time, evaluate; then the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the dense model, or a low-rank one")
    parser.add_argument("--model", help="timm name, when the weights do not say it")
    parser.add_argument("--img-size", type=int, required=True)
    parser.add_argument("--attn-map", required=True, help="with importance, of that size")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--output-dir", default="runs/time_over_points")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=["info", "allocated", "groups64", "tiles32"]
    )
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.75, 0.9, 0.95])
    parser.add_argument("--calibrate", metavar="ARGS", help="of finetune-sparse, such as '--calibrate-steps 100'")
    parser.add_argument("--val-images", type=int)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of time")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--no-time", action="store_true", help="only make the masks, and evaluate")
    parser.add_argument("--plot", metavar="FILE", help=".png, .pdf or .svg")
    parser.add_argument("--beside", nargs="+", default=[], metavar="DIR", help="of the same model, to draw, too")
    options = parser.parse_args()
    masks, rows = Masks(options), []
    masks.open()
    for kind in options.kinds:
        for sparsity in options.sparsities:
            mask = masks.mask(kind, sparsity)
            if mask is not None:
                timed = {} if options.no_time else masks.once(mask, masks.time_ratio)
                rows.append({"kind": kind, **masks.once(mask, masks.quality), **timed})
                write_rows(masks.folder / "time_over_points.csv", rows)
    print((masks.folder / "time_over_points.csv").read_text(encoding="utf-8"), end="")
    if options.plot and not options.no_time:
        name = options.model or Path(options.checkpoint).stem
        sizes = sorted([(options.img_size, rows), *map(read_rows, options.beside)], key=lambda size: size[0])
        draw([(f"{name}, {size} pixels, {options.precision}", rows) for size, rows in sizes], options.plot)


if __name__ == "__main__":
    main()
