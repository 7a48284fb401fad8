"""The training and the validation images of a run."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess


@dataclass(frozen=True)
class Images:
    """Both splits of a data set, and how their images are brought into the form that the model takes."""

    train: ImageData
    val: ImageData
    preprocess: Preprocess
