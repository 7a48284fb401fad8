"""Options of the block-wise calibration."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

VIEWS = 1536
"""Few images are looked at in so many views; of many, one view each shows more."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(Settings, panel="Calibration"):
    """How block after block is fitted to the dense model, on a few images and without labels."""

    calibrate_steps: int = setting(240, "Calibration steps for each block; 0 leaves calibration out.", minimum=0)
    calibrate_images: int = setting(2048, "Training images that calibration looks at.", minimum=1)
    calibrate_path: list[str] = setting(
        [],
        "Folders of images to calibrate on; labels are not looked at, and of a folder with train/ its images are "
        "taken. By default the training images, which can be named among others.",
        metavar="FOLDER...",
        show_default=False,
    )
    calibrate_crops: int | None = setting(
        None,
        "Views of each of these images: the evaluation crop, and random crops. By default 3 where there are up to "
        f"{VIEWS // 3} images, 2 up to {VIEWS // 2}, else 1.",
        minimum=1,
        show_default=False,
    )
    calibrate_joint_steps: int = setting(
        0,
        "Steps in which the first half of the blocks is fitted as one, behind their own fits, on random parts of "
        "the images; one takes as long as five or so of a block's. 0: none.",
        minimum=0,
    )
    calibrate_batch_size: int = setting(16, "Images of a calibration step, over all processes.", minimum=1)
    calibrate_lr: float = setting(1e-3, "Peak learning rate of calibration.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibrate_joint_steps and not self.calibrate_steps:
            raise VitcodError(
                "--calibrate-joint-steps goes on from blocks that were fitted one by one: leave it out, or "
                "--calibrate-steps 0."
            )

    @property
    def enabled(self) -> bool:
        """Whether there is any calibration."""
        return self.calibrate_steps > 0

    def crops(self, images: int) -> int:
        """Views of each of so many images; only the first without calibration."""
        if not self.enabled:
            return 1
        if self.calibrate_crops is not None:
            return self.calibrate_crops
        return min(max(VIEWS // max(images, 1), 1), 3)


@dataclass(frozen=True, kw_only=True)
class LowRankCalibrationSettings(CalibrationSettings):
    """For heads that are fitted to the logits already, which leaves little to do."""

    calibrate_steps: int = setting(25, "Calibration steps for each block; 0 leaves calibration out.", minimum=0)
    calibrate_images: int = setting(256, "Training images that alignment and calibration look at.", minimum=1)
    calibrate_crops: int | None = setting(
        1, "Views of each of these images: the evaluation crop, and random crops.", minimum=1
    )
    calibrate_batch_size: int = setting(8, "Images of a calibration step, over all processes.", minimum=1)
