"""``vitcod compress``: from weights and images to a finished model, by the four steps."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.hub import check_push
from vitcod_cli.artifacts.publish import publish
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.model.build import check_auto_encoder, model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.pipeline.options import CompressOptions
from vitcod_cli.pipeline.plan import in_words
from vitcod_cli.pipeline.record import Row
from vitcod_cli.pipeline.scores import DENSE
from vitcod_cli.pipeline.search import LEAST, Found, search
from vitcod_cli.pipeline.setup import Prepared, prepare
from vitcod_cli.pipeline.space import Outputs
from vitcod_cli.pipeline.stages import LOW_RANK, point_name
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.steps.options import EvalOptions

FILE = "compress.json"
MODEL = "model.safetensors"


def compress_run(options: CompressOptions, reporter: Reporter = QUIET) -> dict[str, Any]:
    """Compress a model in a folder; returns what ``compress.json`` says there.

    Raises:
        VitcodError: if options, weights, images and folder don't go together, the sparsity can't be reached, or
            no sparsity costs as little as ``max_drop``.
    """
    sparsity = LEAST / 100 if options.max_drop is not None else options.asked_sparsity
    outputs = Outputs(
        [(options.method, sparsity)],
        importance=options.method == "allocated",
        adds_heads=options.lowrank.svd_type != "none",
        delivers=True,
    )
    with prepare(
        "compress",
        options,
        FILE,
        reporter,
        outputs,
        check=lambda: check_push(options.hub),
        check_model=lambda model: _check_model(model, options),
        sparsity=options.asked_sparsity if options.max_drop is None else None,
    ) as prepared:
        return _Compression(options, prepared, reporter).run()


def _check_model(model: Transformer, options: CompressOptions) -> None:
    """Raise a VitcodError if there are no points to lose, or the model can have no auto-encoder."""
    max_drop = options.max_drop
    if options.lowrank.svd_type != "none":
        check_auto_encoder(model, model_config(model))
    if max_drop is not None and not model.num_classes:
        raise VitcodError(
            f"--max-drop {max_drop:g} counts points of Acc@1, and the model has no head (--num-classes 0); say "
            "how sparse it shall be (--sparsity); vitcod sweep shows what each sparsity costs its features."
        )


class _Compression:
    def __init__(self, options: CompressOptions, prepared: Prepared, reporter: Reporter) -> None:
        self.options, self.prepared, self.reporter = options, prepared, reporter
        self.record, self.stages = prepared.record, prepared.stages
        self.adds_heads = options.lowrank.svd_type != "none" and not prepared.is_low_rank
        self.needs_importance = options.method == "allocated"

    def run(self) -> dict[str, Any]:
        start = self.prepared.dense
        if self.options.lowrank.svd_type != "none" and not self.adds_heads:
            self.reporter.info(f"{self.options.init_from} is low-rank already: that stage is left out.")
        self._tell_plan()
        self.prepared.score(DENSE, start)
        if self.adds_heads:
            start = self.stages.low_rank(start, self.options.lowrank)
            self._check_low_rank(self.prepared.score(LOW_RANK, start, stages=(LOW_RANK,)))
        attention_map = self.stages.attention_map(start, importance=self.needs_importance)

        def point(sparsity: float) -> Row:
            return self.prepared.point(start, attention_map, self.options.method, sparsity)

        final = point(self.options.asked_sparsity) if self.options.max_drop is None else self._searched(point)
        self._time(final)
        return self._finish(final)

    def _tell_plan(self) -> None:
        """The stages and how long they will take, about."""
        options, plan = self.options, self.prepared.plan(importance=self.needs_importance)
        lines = [("low-rank heads", plan.low_rank)] if self.adds_heads else []
        lines.append(("attention map", plan.attention_map))
        for sparsity, _ in options.way_to(options.method, options.asked_sparsity):
            lines.append((f"on the way, {sparsity:.0%}: calibrated, mapped again", plan.on_the_way))
        total = sum(seconds for _, seconds in lines) + plan.point
        what = f"{options.method} mask of {options.asked_sparsity:.0%}, calibrated"
        if options.max_drop is not None:
            what, total = f"{options.method} mask, calibrated; 3 to 7 are tried", total + 3 * plan.point
        if options.epochs:
            what += f", {options.epochs} epochs"
        lines.append((what, plan.point))
        self.reporter.info("Plan, with times expected here:")
        for name, seconds in [*lines, ("in all, about", total)]:
            self.reporter.info(f"  {name:48} {in_words(seconds):>8}")

    def _check_low_rank(self, row: Row) -> None:
        allowed = self.options.max_drop
        if allowed is not None and _drop(row) > allowed:
            raise VitcodError(
                f"Low-rank heads alone cost {_drop(row):.1f} points, more than --max-drop {allowed:g}; leave them "
                "out with --svd-type none, or allow more."
            )

    def _searched(self, point: Callable[[float], Row]) -> Row:
        """The point of the largest sparsity that costs no more than is allowed."""
        allowed = self.options.max_drop
        assert allowed is not None

        def drop_at(percent: int) -> float:
            try:
                return _drop(point(percent / 100))
            except SparsityError as error:
                self.reporter.info(f"{percent} %: {error}")
                return math.inf

        found = search(drop_at, allowed)
        names = ", ".join(
            f"{percent} %: {drop:.1f}" for percent, drop in sorted(found.drops.items()) if drop < math.inf
        )
        self.reporter.info(f"Points lost at each sparsity: {names}.")
        if found.best is None:
            raise VitcodError(_unmet(found, allowed, self.record.path.parent))
        row = self.record.result(point_name(self.options.method, found.best / 100))
        assert row is not None
        return row

    def _time(self, final: Row) -> None:
        rows = [row for row in self.record.results if row["name"] in (DENSE, LOW_RANK, final["name"])]
        if all("ms_per_image" in row for row in rows):
            return
        for row, spread in zip(rows, self.prepared.scores.milliseconds(rows), strict=True):
            row["ms_per_image"] = round(spread.median, 3)
            row["ms_iqr"] = round(spread.iqr, 3)
        self.record.write()

    def _finish(self, final: Row) -> dict[str, Any]:
        """Put the finished model in its place, with its card, and say what may come next."""
        folder, data = self.record.path.parent, self.record.about["data"]
        path = folder / MODEL

        def copy() -> None:
            with atomic_path(path) as temporary:
                shutil.copyfile(folder / final["checkpoint"], temporary)

        on_main(copy)
        publish(
            path,
            self.options.hub,
            command=["vitcod", "compress", *self.options.arguments(lasting=True)],
            dataset=data["path"],
            labelled=data["labelled"],
            reporter=self.reporter,
        )
        self.record.about["model"] = {"file": MODEL, "row": final["name"], "next": self._next(path)}
        self.record.write()
        return self.record.to_dict()

    def _next(self, path: Path) -> list[str]:
        """Command lines for the finished model."""
        against = None if self.record.about["data"]["labelled"] else str(self.prepared.dense)
        evaluation = EvalOptions(checkpoint=[str(path)], against=against, data=self.prepared.options.data)
        program = path.with_suffix(".onnx")
        return [
            shlex.join(["vitcod", *words])
            for words in (
                ["eval", *evaluation.arguments()],
                ["export", "--checkpoint", str(path), "--output", str(program)],
                ["report", str(path.parent)],
            )
        ]


def _drop(row: Row) -> float:
    return -float(row["difference"]["points"])


def _unmet(found: Found, allowed: float, folder: Path) -> str:
    percent, drop = min(found.drops.items(), key=lambda entry: entry[1])
    where = "" if percent > LEAST else ", the least that is tried"
    return (
        f"--max-drop {allowed:g} can't be met: the best of {len(found.drops)} masks, {percent} % sparse{where}, "
        f"costs {drop:.1f} points. Allow more, calibrate longer (--calibrate-steps, --calibrate-images), or add "
        f"--epochs; what was tried is in {folder}."
    )
