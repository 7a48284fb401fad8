"""``vitcod sweep``: accuracy over sparsity, of one model and several methods."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Any

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.pipeline.options import Method, SweepOptions
from vitcod_cli.pipeline.plan import Plan, in_words
from vitcod_cli.pipeline.scores import DENSE
from vitcod_cli.pipeline.setup import Setting, prepared
from vitcod_cli.pipeline.stages import point_name
from vitcod_cli.plots.curve import save_curve
from vitcod_cli.reporting import QUIET, Reporter

FILE, TABLE = "sweep.json", "sweep.csv"
PICTURES = ("accuracy.png", "accuracy.pdf")

_COLUMNS = (
    *("name", "method", "sparsity", "acc1", "acc1_low", "acc1_high", "acc5", "loss", "images", "agreement", "kl"),
    *("attention_macs", "macs", "parameters", "bytes", "seconds", "checkpoint"),
)
_DIFFERENCES = ("points", "low", "high", "p", "gained", "lost")


def sweep(options: SweepOptions, reporter: Reporter = QUIET) -> dict[str, Any]:
    """Mask, calibrate and score one model at several sparsities, by several methods, in a folder.

    Leaves ``sweep.json``, ``sweep.csv`` and the picture there, anew after each point; returns what
    ``sweep.json`` says. A sparsity that a method can't give is left out, with a warning.

    Raises:
        VitcodError: if options, weights, images and folder don't go together, or no point could be made.
    """
    with prepared("sweep", options, FILE, reporter) as setting:
        _tell_plan(options, setting, reporter)
        record, dense = setting.record, setting.dense
        if record.result(DENSE) is None:
            record.add_result(setting.scores.dense())
        attention_map = setting.stages.attention_map(dense, importance=True)
        asked = list(_points(options))
        for method, sparsity in asked:
            name = point_name(method, sparsity)
            try:
                mask = setting.stages.mask(attention_map, method, sparsity)
            except SparsityError as error:
                reporter.warn(f"{name} is left out: {error}")
                continue
            path = setting.stages.sparse(dense, mask, dense)
            if record.result(name) is None:
                seconds = setting.stages.seconds(f"mask {name}", f"sparse {name}")
                record.add_result(setting.scores.row(name, path, method=method, seconds=seconds))
            _deliver(setting)
        names = {point_name(*point) for point in asked}
        if not any(row["name"] in names for row in record.results):
            raise VitcodError("No point of the sweep could be made; choose other --sparsities.")
        return record.to_dict()


def _points(options: SweepOptions) -> Iterator[tuple[Method, float]]:
    """Every sparsity by every method: what was done when a sweep is interrupted can be compared."""
    for sparsity in sorted(options.sparsities):
        for method in options.methods:
            yield method, sparsity


def _tell_plan(options: SweepOptions, setting: Setting, reporter: Reporter) -> None:
    images = setting.images
    plan = Plan.of(
        setting.costs,
        options,
        blocks=setting.blocks,
        train=len(images.train),
        val=len(images.val),
        importance=True,
    )
    count = len(options.sparsities) * len(options.methods)
    done = sum(setting.record.result(point_name(*point)) is not None for point in _points(options))
    already = f", {done} of them finished" if done else ""
    total = (0 if done else plan.attention_map) + (count - done) * plan.point
    reporter.info(
        f"Plan: an attention map ({in_words(plan.attention_map)}), then {count} points{already} "
        f"({in_words(plan.point)} each); about {in_words(total)} in all."
    )


def _deliver(setting: Setting) -> None:
    """Table and picture of what there is."""
    record = setting.record
    dense, *points = sorted(
        record.results, key=lambda row: (row["name"] != DENSE, str(row["method"]), row["sparsity"], row["name"])
    )
    record.results = [dense, *points]

    def write() -> None:
        with atomic_path(setting.folder / TABLE) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*_COLUMNS, *_DIFFERENCES])
            writer.writerows(map(_cells, record.results))
        save_curve(
            [str(setting.folder / name) for name in PICTURES],
            dense,
            points,
            title=str(record.about["model_config"].get("model", "")),
            labelled=bool(record.about["data"]["labelled"]),
        )

    on_main(write)
    record.write()


def _cells(row: Mapping[str, Any]) -> list[Any]:
    difference = row["difference"] or {}
    return [*(row.get(name) for name in _COLUMNS), *(difference.get(name) for name in _DIFFERENCES)]
