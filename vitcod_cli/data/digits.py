"""Handwritten digits that come with vitcod, so that everything can be tried on real data at once.

The test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI
Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed CC BY 4.0), as scikit-learn
ships it: 1797 grey images of 8 x 8 pixels with values 0..16, ten classes.
"""

from __future__ import annotations

import zipfile
import zlib
from importlib.resources import files
from typing import Literal

import numpy as np
from PIL import Image

from vitcod_cli.data.images import ImageData
from vitcod_cli.errors import VitcodError

_EVERY = 5


class DigitImages(ImageData):
    """The digits, grey, 0..255: 1438 for training, 359 for validation.

    The third of every five images of a class is for validation, so both splits have all classes in
    the same proportion.
    """

    in_memory = True

    def __init__(self, split: Literal["train", "val"], max_bad_images: int = 10) -> None:
        super().__init__(num_classes=10, max_bad_images=max_bad_images)
        images, targets = _read()
        chosen = _validation(targets) == (split == "val")
        self._images = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
        self._targets = targets[chosen]

    def __len__(self) -> int:
        return len(self._targets)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """An 8 x 8 grey image and its digit."""
        return Image.fromarray(self._images[index]), int(self._targets[index])

    def describe(self, index: int) -> str:
        """``digits image 17``."""
        return f"digits image {index}"


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] and their digits [1797].

    Raises:
        VitcodError: if the file of this installation is missing or damaged.
    """
    try:
        with (
            (files("vitcod_cli.data") / "digits.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as data,
        ):
            images, targets = data["images"], data["targets"]
            if (
                images.shape != (1797, 8, 8)
                or targets.shape != (1797,)
                or not set(targets.tolist()) <= set(range(10))
            ):
                raise ValueError("it holds something else")
            return images, targets
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise VitcodError(
            f"The digits that come with vitcod can't be read ({error}); install vitcod anew, or give --data-path "
            "another data set."
        ) from error


def _validation(targets: np.ndarray) -> np.ndarray:
    """bool [n]: the third, eighth, ... image of each class."""
    chosen = np.zeros(len(targets), dtype=bool)
    for digit in range(10):
        chosen[np.flatnonzero(targets == digit)[_EVERY // 2 :: _EVERY]] = True
    return chosen
