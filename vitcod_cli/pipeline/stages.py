"""The four steps as stages of one folder: each is run once, shown as its own command, and gone on with."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
from vitcod_cli.distributed import on_main
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.masks.allocate import Allocated
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.masks.info import Info
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.settings import MaskOptions, MaskSettings
from vitcod_cli.pipeline.options import Method, PipelineOptions, late_weight_for
from vitcod_cli.pipeline.record import Record, Stage, identity_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.settings import Settings
from vitcod_cli.steps.attention_map import dump_attention
from vitcod_cli.steps.lowrank import finetune_lowrank
from vitcod_cli.steps.mask import make_mask
from vitcod_cli.steps.options import LATE_WEIGHT, AttentionMapOptions, LowRankOptions, SparseOptions
from vitcod_cli.steps.sparse import finetune_sparse
from vitcod_cli.training.recipe import LowRankRecipe, SparseRecipe

DENSE_FILE = "dense.safetensors"
_MAP = "attn"
_VIA = "via"
LOW_RANK = "low-rank"
"""The stage of step 1, and the row of its model."""
_LOW_RANK_FOLDER = "lowrank"


def point_name(method: Method, sparsity: float) -> str:
    """``allocated_0.90``: of a mask, and of the run under it."""
    return f"{method}_{sparsity:.2f}" if round(sparsity, 2) == sparsity else f"{method}_{sparsity:g}"


def via_name(sparsity: float) -> str:
    """``via_0.75``: of the mask, the run and the map on the way to a sparser mask."""
    return f"{_VIA}_{sparsity:.2f}" if round(sparsity, 2) == sparsity else f"{_VIA}_{sparsity:g}"


def lowrank_calibration(asked: CalibrationSettings) -> LowRankCalibrationSettings:
    """Of step 1, where the options are those of step 4: few steps are enough, and none if there are none."""
    default = LowRankCalibrationSettings()
    return default.changed(
        calibrate_steps=default.calibrate_steps if asked.enabled else 0,
        calibrate_images=min(default.calibrate_images, asked.calibrate_images),
        calibrate_path=asked.calibrate_path,
    )


class Stages:
    """Runs the steps in a folder."""

    def __init__(self, options: PipelineOptions, record: Record, reporter: Reporter, *, resumes: bool) -> None:
        self.options, self.record, self.reporter = options, record, reporter
        self.folder = record.path.parent
        self._resumes = resumes

    def low_rank(self, dense: Path, settings: LowRankSettings) -> Path:
        """Step 1; returns the low-rank checkpoint."""
        options = LowRankOptions(
            init_from=str(dense),
            lowrank=settings,
            calibration=lowrank_calibration(self.options.calibration),
            recipe=LowRankRecipe(epochs=0, model_ema=False, batch_size=self.options.batch_size),
            **self._common(_LOW_RANK_FOLDER),
        )
        self._run(
            LOW_RANK,
            "finetune-lowrank",
            options,
            lambda: finetune_lowrank(options, self.reporter),
            reads={"init_from": str(dense)},
            makes=f"{_LOW_RANK_FOLDER}/best.safetensors",
        )
        return self.folder / _LOW_RANK_FOLDER / "best.safetensors"

    def attention_map(self, checkpoint: Path, *, importance: bool, name: str = _MAP) -> Path:
        """Step 2; returns the map, ``NAME.safetensors``."""
        path = self.folder / f"{name}.safetensors"
        options = AttentionMapOptions(
            checkpoint=str(checkpoint),
            max_images=self.options.map_images,
            importance_images=self.options.importance_images if importance else 0,
            late_weight=late_weight_for(self.options.calibration) if importance else LATE_WEIGHT,
            batch_size=self.options.batch_size,
            output=str(path),
            overwrite=True,
            data=self.options.data,
            runtime=self.options.runtime,
        )
        self._run(
            _map_stage(name),
            "dump-attn",
            options,
            lambda: dump_attention(options, self.reporter),
            reads={"checkpoint": str(checkpoint)},
            makes=path.name,
        )
        return path

    def mask(self, attention_map: Path, method: Method, sparsity: float, *, name: str | None = None) -> Path:
        """Step 3; returns the mask, ``NAME.safetensors``.

        Raises:
            SparsityError: in all processes, if the map can't give it.
        """
        name = name or point_name(method, sparsity)
        path = self.folder / f"{name}.safetensors"
        allocate = method == "allocated"
        allocated = Allocated(allocate=allocate, floor=self.options.floor if allocate else FloorSettings())
        settings = MaskSettings(info=Info(sparsity=sparsity), allocated=allocated, tiles=self.options.tiles)
        options = MaskOptions(attn_map=str(attention_map), output=str(path), overwrite=True, mask=settings)

        def work() -> None:
            if reason := on_main(lambda: _unreachable(options, self.reporter)):
                raise SparsityError(reason)

        reads = {"attn_map": str(attention_map)}
        self._run(f"mask {name}", "gen-mask", options, work, reads=reads, makes=path.name)
        return path

    def way(
        self,
        checkpoint: Path,
        attention_map: Path,
        dense: Path,
        sparsities: Sequence[tuple[float, CalibrationSettings]],
    ) -> tuple[Path, Path, list[str]]:
        """Steps 3, 4 (without epochs) and 2 again at each of ``sparsities``, with its calibration.

        Returns the checkpoint and the map that the mask after them is made from, and the names of the stages.

        What was pruned stays pruned: to the map those entries are worth least.

        Raises:
            SparsityError: in all processes, if a map can't give its sparsity.
        """
        stages: list[str] = []
        for sparsity, calibration in sparsities:
            name = via_name(sparsity)
            mask = self.mask(attention_map, "allocated", sparsity, name=name)
            checkpoint = self.sparse(
                checkpoint, mask, dense, self.options.changed(epochs=0, calibration=calibration)
            )
            attention_map = self.attention_map(checkpoint, importance=True, name=f"{name}_{_MAP}")
            stages += [f"mask {name}", f"sparse {name}", _map_stage(f"{name}_{_MAP}")]
        return checkpoint, attention_map, stages

    def sparse(self, checkpoint: Path, mask: Path, dense: Path, asked: PipelineOptions | None = None) -> Path:
        """Step 4, learning from ``dense``; returns the sparse checkpoint.

        Args:
            asked: other options than those of the whole.
        """
        asked = asked or self.options
        options = SparseOptions(
            init_from=str(checkpoint),
            mask=str(mask),
            calibration=asked.calibration,
            recipe=SparseRecipe(
                epochs=asked.epochs,
                lr=asked.lr,
                batch_size=asked.batch_size,
                model_ema=asked.epochs > 0,
                distill_from=str(dense),
            ),
            **self._common(mask.stem),
        )
        self._run(
            f"sparse {mask.stem}",
            "finetune-sparse",
            options,
            lambda: finetune_sparse(options, self.reporter),
            reads={"init_from": str(checkpoint), "mask": str(mask), "distill_from": str(dense)},
            makes=f"{mask.stem}/best.safetensors",
        )
        return self.folder / mask.stem / "best.safetensors"

    def seconds(self, *names: str) -> float:
        """What stages took together."""
        return sum(stage.seconds for stage in self.record.stages if stage.name in names)

    def _common(self, folder: str) -> dict[str, Any]:
        path = self.folder / folder
        filled = on_main(lambda: path.is_dir() and any(os.scandir(path)))
        output = OutputSettings(
            output_dir=str(path), resume=filled and self._resumes, overwrite=filled and not self._resumes
        )
        return {"data": self.options.data, "runtime": self.options.runtime, "output": output}

    def _run(
        self,
        name: str,
        command: str,
        options: Settings,
        work: Callable[[], object],
        *,
        reads: Mapping[str, str],
        makes: str,
    ) -> None:
        """Run a stage, unless it is done: ``reads`` are its files, by the name of the option."""
        shown = shlex.join(["vitcod", command, *options.arguments(lasting=True)])
        stage = Stage(name, shown, makes, identity_of(options, reads))
        if self.record.finished(stage):
            self.reporter.info(f"Finished earlier: {name}, in {makes}.")
            return
        self.reporter.info("")
        self.reporter.info(f"$ {shown}")
        self.record.begin(stage)
        start = time.monotonic()
        try:
            work()
        except SparsityError:
            self.record.forget(stage)
            raise
        except KeyboardInterrupt:
            self.reporter.warn(
                f"Stopped in the stage {name}; those before it are finished. To go on, start the same command "
                "with --resume (and without --overwrite)."
            )
            raise
        self.record.finish(stage, time.monotonic() - start)


def _map_stage(name: str) -> str:
    return "attention map" if name == _MAP else f"attention map {name}"


def _unreachable(options: MaskOptions, reporter: Reporter) -> str:
    """Make the mask; why its sparsity can't be had, or nothing."""
    try:
        make_mask(options, reporter)
    except SparsityError as error:
        return str(error)
    return ""
