"""``vitcod compress``: from weights and images to a finished model, by the four steps."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.hub import check_push, push
from vitcod_cli.artifacts.model_card import CardModel, model_card, shown_command, write_model_card
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.pipeline.options import DEFAULT_SPARSITY, CompressOptions
from vitcod_cli.pipeline.plan import Plan, in_words
from vitcod_cli.pipeline.scores import DENSE
from vitcod_cli.pipeline.search import LEAST, Found, search
from vitcod_cli.pipeline.setup import Setting, prepared
from vitcod_cli.pipeline.stages import point_name
from vitcod_cli.reporting import QUIET, Reporter

FILE = "compress.json"
MODEL = "model.safetensors"
LOW_RANK = "low-rank"


def compress_run(options: CompressOptions, reporter: Reporter = QUIET) -> dict[str, Any]:
    """Compress a model in a folder; returns what ``compress.json`` says there.

    Raises:
        VitcodError: if options, weights, images and folder don't go together, the sparsity can't be reached, or
            no sparsity costs as little as ``max_drop``.
    """
    with prepared("compress", options, FILE, reporter, lambda: check_push(options.hub)) as setting:
        return _Compression(options, setting, reporter).run()


class _Compression:
    def __init__(self, options: CompressOptions, setting: Setting, reporter: Reporter) -> None:
        self.options, self.setting, self.reporter = options, setting, reporter
        self.record, self.stages, self.scores = setting.record, setting.stages, setting.scores
        self.low_rank = options.lowrank.svd_type != "none" and not setting.low_rank
        self.start, self.map = setting.dense, Path()

    def run(self) -> dict[str, Any]:
        if self.options.lowrank.svd_type != "none" and self.setting.low_rank:
            self.reporter.info(f"{self.options.init_from} is low-rank already: that stage is left out.")
        self._tell_plan()
        self._score(DENSE, self.setting.dense, None, ())
        if self.low_rank:
            self.start = self.stages.low_rank(self.setting.dense, self.options.lowrank)
            row = self._score(LOW_RANK, self.start, None, (LOW_RANK,))
            self._check_low_rank(row)
        self.map = self.stages.attention_map(self.start, importance=self.options.method == "allocated")
        final = self._searched() if self.options.max_drop is not None else self._point(self._sparsity)
        self._time(final)
        return self._finish(final)

    @property
    def _sparsity(self) -> float:
        return DEFAULT_SPARSITY if self.options.sparsity is None else self.options.sparsity

    def _tell_plan(self) -> None:
        """The stages and how long they will take, about."""
        images, options = self.setting.images, self.options
        plan = Plan.of(
            self.setting.costs,
            options,
            blocks=self.setting.blocks,
            train=len(images.train),
            val=len(images.val),
            importance=options.method == "allocated",
        )
        lines = [("low-rank heads", plan.low_rank)] if self.low_rank else []
        lines.append(("attention map", plan.attention_map))
        total = sum(seconds for _, seconds in lines) + plan.point
        what = f"{options.method} mask of {self._sparsity:.0%}, calibrated"
        if options.max_drop is not None:
            what, total = f"{options.method} mask, calibrated; 3 to 7 are tried", total + 3 * plan.point
        if options.epochs:
            what += f", {options.epochs} epochs"
        lines.append((what, plan.point))
        self.reporter.info("Plan, with times expected here:")
        for name, seconds in lines:
            self.reporter.info(f"  {name:48} {in_words(seconds):>8}")
        self.reporter.info(f"  {'in all, about':48} {in_words(total):>8}")

    def _score(self, name: str, path: Path, method: str | None, stages: tuple[str, ...]) -> dict[str, Any]:
        """The row of a model, as recorded if it was measured already."""
        known = self.record.result(name)
        if known is not None and "difference" in known:
            return known
        row = self.scores.row(name, path, method=method, seconds=self.stages.seconds(*stages))
        self.record.add_result(row)
        return row

    def _check_low_rank(self, row: dict[str, Any]) -> None:
        drop, allowed = _drop(row), self.options.max_drop
        if allowed is not None and drop > allowed:
            raise VitcodError(
                f"Low-rank heads alone cost {drop:.1f} points, more than --max-drop {allowed:g}; leave them out "
                "with --svd-type none, or allow more."
            )

    def _point(self, sparsity: float) -> dict[str, Any]:
        """Mask, calibration and score of one sparsity."""
        method = self.options.method
        mask = self.stages.mask(self.map, method, sparsity)
        path = self.stages.sparse(self.start, mask, self.setting.dense)
        name = point_name(method, sparsity)
        return self._score(name, path, method, (f"mask {name}", f"sparse {name}"))

    def _searched(self) -> dict[str, Any]:
        allowed = self.options.max_drop
        assert allowed is not None
        found = search(self._drop_at, allowed)
        names = ", ".join(
            f"{percent} %: {drop:.1f}" for percent, drop in sorted(found.drops.items()) if drop < math.inf
        )
        self.reporter.info(f"Points lost at each sparsity: {names}.")
        if found.best is None:
            raise VitcodError(_unmet(found, allowed, self.setting.folder))
        row = self.record.result(point_name(self.options.method, found.best / 100))
        assert row is not None
        return row

    def _drop_at(self, percent: int) -> float:
        try:
            return _drop(self._point(percent / 100))
        except SparsityError as error:
            self.reporter.info(f"{percent} %: {error}")
            return math.inf

    def _time(self, final: dict[str, Any]) -> None:
        rows = [row for row in self.record.results if row["name"] in (DENSE, LOW_RANK, final["name"])]
        if all("ms_per_image" in row for row in rows):
            return
        for row, spread in zip(rows, self.scores.milliseconds(rows), strict=True):
            row["ms_per_image"] = round(spread.median, 3)
            row["ms_iqr"] = round(spread.iqr, 3)
        self.record.write()

    def _finish(self, final: dict[str, Any]) -> dict[str, Any]:
        """Put the finished model in its place."""
        path = self.setting.folder / MODEL

        def copy() -> None:
            with atomic_path(path) as temporary:
                shutil.copyfile(self.setting.folder / final["checkpoint"], temporary)

        on_main(copy)
        self._publish(path)
        self.record.about["model"] = {"file": MODEL, "row": final["name"]}
        self.record.write()
        return self.record.to_dict()

    def _publish(self, path: Path) -> None:
        """Leave the model's card beside it, and upload both where that is asked for."""
        options, data = self.options, self.record.about["data"]

        def card() -> str:
            asked = options.changed(output=options.output.changed(resume=False, overwrite=False))
            command = shown_command("compress", asked.arguments())
            about: dict[str, Any] = {"command": command, "dataset": data["path"], "labelled": data["labelled"]}
            model = CardModel.read(path)
            write_model_card(path.parent, model_card(model, **about))
            return model_card(model, **about, repo=options.hub.push_to_hub or "OWNER/NAME")

        text = on_main(card)
        url = push(options.hub, path, text, {"library_name": "vitcod", **self.record.about})
        if url is not None:
            self.reporter.info(f"Uploaded to {url}.")


def _drop(row: dict[str, Any]) -> float:
    return -float(row["difference"]["points"])


def _unmet(found: Found, allowed: float, folder: Path) -> str:
    percent, drop = min(found.drops.items(), key=lambda entry: entry[1])
    where = "" if percent > LEAST else ", the least that is tried"
    return (
        f"--max-drop {allowed:g} can't be met: the best of {len(found.drops)} masks, {percent} % sparse{where}, "
        f"costs {drop:.1f} points. Allow more, calibrate longer (--calibrate-steps, --calibrate-images), or add "
        f"--epochs; what was tried is in {folder}."
    )
