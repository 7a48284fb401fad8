"""How the patches of a model lie on its images, as far as a map or a mask says. Imports neither torch nor timm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from vitcod_cli.artifacts.model_config import ModelConfig

PATCH = 16
"""Pixels of a patch, where nothing says how large it is."""


class Grid(NamedTuple):
    """Rows and columns of patches.

    Attributes:
        image_size: height and width in pixels of the images that the model takes.
    """

    rows: int
    columns: int
    image_size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"


def patch_grid(patches: int, config: Mapping[str, Any]) -> Grid | None:
    """The grid of so many patches; None where they make none.

    Args:
        config: the ``model_config`` of a map or a mask. A published file has none: its grid is taken as square.
    """
    if patches < 1:
        return None
    try:
        model = ModelConfig.from_dict(config)
    except ValueError:
        side = math.isqrt(patches)
        return Grid(side, side, (side * PATCH, side * PATCH)) if side * side == patches else None
    height, width = model.img_size
    # A model's default size of patches is timm's knowledge; they are squares, so that their number tells it.
    size = model.model_kwargs.get("patch_size") or math.sqrt(height * width / patches)
    tall, wide = size if isinstance(size, (list, tuple)) else (size, size)
    grid = Grid(round(height / tall), round(width / wide), model.img_size)
    return grid if grid.rows * grid.columns == patches else None
