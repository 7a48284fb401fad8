"""The images of a training: both splits, and what the model expects of them."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess


@dataclass(frozen=True)
class Images:
    """Both splits, and how they are brought into the form that the model takes.

    Attributes:
        calibration: what calibration looks at: the training images, or others without labels.
    """

    train: ImageData
    val: ImageData
    preprocess: Preprocess
    calibration: ImageData
