"""What finetune-lowrank and finetune-sparse do before they train: start the auto-encoders, calibrate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.distributed import is_main
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.reporting import Reporter

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    from vitcod_cli.artifacts.run_directory import RunDirectory
    from vitcod_cli.calibration.blockwise import Scope
    from vitcod_cli.data.calibration import CalibrationImages
    from vitcod_cli.data.splits import Images
    from vitcod_cli.runtime import Runtime


def dense_copy(model: VisionTransformer) -> VisionTransformer:
    """``model`` as it is now, without its mask: the teacher of a calibration."""
    from vitcod_cli.model.build import clear_keep_mask

    teacher = copy.deepcopy(model)
    clear_keep_mask(teacher)
    return teacher


@dataclass(frozen=True, kw_only=True)
class Compression:
    """The steps before training, with the images they share.

    Attributes:
        teacher: what the model is calibrated to; has the model's shape.
        teacher_flag: the option that named it, for error messages.
        lowrank: how new auto-encoders begin; None when there are none.
        scope: what of a block is calibrated.
    """

    model: VisionTransformer
    teacher: nn.Module
    teacher_flag: str
    lowrank: LowRankSettings | None
    scope: Scope
    calibration: CalibrationSettings
    workers: int | None
    images: Images
    runtime: Runtime
    reporter: Reporter

    def run(self, run: RunDirectory) -> None:
        """Start new auto-encoders, then calibrate; figures go into ``run``."""
        from vitcod_cli.calibration.blockwise import calibrate, check_teacher

        steps, lowrank = self.calibration.calibrate_steps, self.lowrank
        if steps:
            check_teacher(self.model, self.teacher, self.teacher_flag)
        if not steps and (lowrank is None or lowrank.init == "trunc-normal"):
            return
        images = self._read_images()
        self.runtime.prepare(self.model)
        if lowrank is not None and lowrank.init != "trunc-normal":
            self._start_auto_encoders(images.first_crops(), lowrank, run)
        if steps:
            self.runtime.prepare(self.teacher)
            calibrate(
                self.model,
                self.teacher,  # type: ignore[arg-type]  # check_teacher has seen to it
                images,
                self.calibration,
                scope=self.scope,
                runtime=self.runtime,
                reporter=self.reporter,
                on_block=lambda report: _log(run, report.metrics()),
            )

    def _read_images(self) -> CalibrationImages:
        from vitcod_cli.data.calibration import calibration_images

        read = partial(
            calibration_images,
            self.images.train,
            self.images.preprocess,
            self.calibration.calibrate_images,
            workers=self.workers,
            device=self.runtime.device,
            seed=self.runtime.settings.seed,
        )
        images = read(reporter=self.reporter)
        crops = range(1, self.calibration.calibrate_crops) if self.calibration.calibrate_steps else ()
        return images.with_crops([read(crops="random", draw=draw) for draw in crops])

    def _start_auto_encoders(
        self, images: CalibrationImages, settings: LowRankSettings, run: RunDirectory
    ) -> None:
        from vitcod_cli.lowrank.initialise import initialise
        from vitcod_cli.lowrank.moments import collect_moments
        from vitcod_cli.model.build import attentions

        layers = attentions(self.model)
        if settings.init == "aligned" and not all(layer.foldable for layer in layers):
            self.reporter.info(
                "The norm on Q and K leaves heads no freedom to rotate: --init pca instead of aligned."
            )
        with self.reporter.progress("moments", len(images)) as progress:
            moments = collect_moments(
                self.runtime.prepare(self.teacher),
                images.batches(32),
                num_prefix_tokens=self.model.num_prefix_tokens,
                progress=progress,
                autocast=self.runtime.autocast,
            )
        with self.reporter.progress("fit heads", len(layers), unit="blocks") as progress:
            for report in initialise(self.model, moments, settings, progress):
                _log(run, report.figures())


def _log(run: RunDirectory, figures: dict[str, Any]) -> None:
    if is_main():
        run.log(**figures)
