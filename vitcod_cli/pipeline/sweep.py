"""``vitcod sweep``: accuracy (or nearness of features) over sparsity, of one model and several methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitcod_cli.artifacts.rows_file import write_rows
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.features import is_of_features
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.pipeline.options import Method, SweepOptions
from vitcod_cli.pipeline.plan import in_words
from vitcod_cli.pipeline.record import Record, Row
from vitcod_cli.pipeline.scores import DENSE
from vitcod_cli.pipeline.setup import Prepared, prepare
from vitcod_cli.pipeline.space import Outputs
from vitcod_cli.pipeline.stages import point_name
from vitcod_cli.plots.curve import save_curve
from vitcod_cli.reporting import QUIET, Reporter

FILE, TABLE = "sweep.json", "sweep.csv"

_ABOUT = ("name", "method", "sparsity")
_ACCURACY = ("acc1", "acc1_low", "acc1_high", "acc5", "loss", "images", "agreement", "kl")
_FEATURES = (
    *("cosine", "cosine_p5", "relative_error", "relative_error_low", "relative_error_high"),
    *("patch_cosine", "patch_error", "same_nearest", "neighbour_overlap", "images"),
)
_COSTS = ("attention_macs", "macs", "parameters", "bytes", "seconds", "checkpoint")
_DIFFERENCES = ("points", "low", "high", "p", "gained", "lost")


def sweep(options: SweepOptions, reporter: Reporter = QUIET) -> dict[str, Any]:
    """Mask, calibrate and score one model at several sparsities, by several methods, in a folder.

    Leaves ``sweep.json``, ``sweep.csv`` and the picture there, anew after each point; returns what
    ``sweep.json`` says. A sparsity that a method can't give is left out, with a warning.

    Raises:
        VitcodError: if options, weights, images and folder don't go together, or no point could be made.
    """
    with prepare("sweep", options, FILE, reporter, Outputs(list(_points(options)))) as prepared:
        _tell_plan(options, prepared, reporter)
        record, dense = prepared.record, prepared.dense
        prepared.score(DENSE, dense)
        attention_map = prepared.stages.attention_map(dense, importance=True)
        asked = list(_points(options))
        for method, sparsity in asked:
            try:
                prepared.point(dense, attention_map, method, sparsity)
            except SparsityError as error:
                reporter.warn(f"{point_name(method, sparsity)} is left out: {error}")
            else:
                _deliver(record)
        names = {point_name(*point) for point in asked}
        if not any(row["name"] in names for row in record.results):
            raise VitcodError("No point of the sweep could be made; choose other --sparsities.")
        return record.to_dict()


def _points(options: SweepOptions) -> Iterator[tuple[Method, float]]:
    """Every sparsity by every method: what was done when a sweep is interrupted can be compared."""
    for sparsity in sorted(options.sparsities):
        for method in options.methods:
            yield method, sparsity


def _tell_plan(options: SweepOptions, prepared: Prepared, reporter: Reporter) -> None:
    plan = prepared.plan(importance=True)
    count = len(options.sparsities) * len(options.methods)
    done = sum(prepared.record.result(point_name(*point)) is not None for point in _points(options))
    already = f", {done} of them finished" if done else ""
    stages = {share for point in _points(options) for share, _ in options.way_to(*point)}
    first = plan.attention_map + len(stages) * plan.on_the_way
    total = (0 if done else first) + (count - done) * plan.point
    reporter.info(
        f"Plan: attention maps ({in_words(first)}, with what is on the way), then {count} points{already} "
        f"({in_words(plan.point)} each); about {in_words(total)} in all."
    )


def _deliver(record: Record) -> None:
    """Table and picture of what there is."""
    folder = record.path.parent
    dense, *points = sorted(
        record.results, key=lambda row: (row["name"] != DENSE, str(row["method"]), row["sparsity"], row["name"])
    )
    record.results = [dense, *points]

    def write() -> None:
        write_rows(folder / TABLE, [_cells(row) for row in record.results])
        save_curve(
            [str(folder / name) for name in pictures_of(dense)],
            dense,
            points,
            title=str(record.about["model_config"].get("model", "")),
            labelled=bool(record.about["data"]["labelled"]),
        )

    on_main(write)
    record.write()


def pictures_of(row: Row) -> tuple[str, ...]:
    """Names of the pictures of a sweep, by the figures that any of its rows has."""
    name = "features" if is_of_features(row) else "accuracy"
    return f"{name}.png", f"{name}.pdf"


def _cells(row: Row) -> Row:
    """A line of the table: every name in it is a column, whether there is a figure or not."""
    if is_of_features(row):
        return {name: row.get(name) for name in (*_ABOUT, *_FEATURES, *_COSTS)}
    difference = row["difference"] or {}
    cells = {name: row.get(name) for name in (*_ABOUT, *_ACCURACY, *_COSTS)}
    return cells | {name: difference.get(name) for name in _DIFFERENCES}
