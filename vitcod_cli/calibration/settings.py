"""Options of the block-wise calibration."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(Settings, panel="Calibration"):
    """How block after block is fitted to the dense model, on a few images and without labels."""

    calibrate_steps: int = setting(240, "Calibration steps for each block; 0 leaves calibration out.", minimum=0)
    calibrate_images: int = setting(512, "Training images that calibration looks at.", minimum=1)
    calibrate_crops: int = setting(
        3, "Views of each of these images: the evaluation crop, and random crops.", minimum=1
    )
    calibrate_batch_size: int = setting(8, "Images of a calibration step, over all processes.", minimum=1)
    calibrate_lr: float = setting(1e-3, "Peak learning rate of calibration.", above=0)

    @property
    def enabled(self) -> bool:
        """Whether there is any calibration."""
        return self.calibrate_steps > 0


@dataclass(frozen=True, kw_only=True)
class LowRankCalibrationSettings(CalibrationSettings):
    """For heads that are fitted to the logits already, which leaves little to do."""

    calibrate_steps: int = setting(25, "Calibration steps for each block; 0 leaves calibration out.", minimum=0)
    calibrate_images: int = setting(256, "Training images that alignment and calibration look at.", minimum=1)
    calibrate_crops: int = setting(
        1, "Views of each of these images: the evaluation crop, and random crops.", minimum=1
    )
