"""What one patch of a real picture looks at: the keys of its row, laid over the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.errors import VitcodError
from vitcod_cli.model.grid import PATCH, Grid


@dataclass(frozen=True)
class View:
    """A picture and the patch that looks.

    Attributes:
        picture: uint8 [side * PATCH, side * PATCH, 3], cropped as for evaluation.
        row, column: of the patch in a grid of ``side`` x ``side``.
        side: patches along an edge.
    """

    picture: NDArray[np.uint8]
    row: int
    column: int
    side: int

    def token(self, num_prefix_tokens: int) -> int:
        """The number of the token that looks."""
        return num_prefix_tokens + self.row * self.side + self.column

    def over_patches(self, values: NDArray[np.generic], num_prefix_tokens: int) -> NDArray[np.generic]:
        """``values`` [N] of all keys as [side * PATCH, side * PATCH], without prefix tokens."""
        grid = values[num_prefix_tokens:].reshape(self.side, self.side)
        return grid.repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def look_at(path: str, query: tuple[int, int] | None, grid: Grid | None) -> View:
    """The picture at ``path``, cropped as for evaluation, and a patch of ``grid``; the middle one by default.

    Raises:
        VitcodError: if the picture can't be read, the patches make no square, or the patch is outside of it.
    """
    from vitcod_cli.data.decode import UnreadableImageError, load_image, reason_of
    from vitcod_cli.data.preprocess import Preprocess, preprocess_for
    from vitcod_cli.data.settings import DataSettings

    if grid is None or grid.rows != grid.columns:
        found = "these patches make none" if grid is None else f"this model's is {grid}"
        raise VitcodError(f"--image needs a square grid of patches, and {found}; leave it out.")
    side = grid.rows
    row, column = (side // 2, side // 2) if query is None else query
    if row >= side or column >= side:
        raise VitcodError(f"--query {row} {column} is outside of the {side} x {side} patches; count from 0.")
    size = side * PATCH
    # The model's own crop, which its size decides, on as many pixels as can be seen.
    crop = preprocess_for({}, (3, *grid.image_size), DataSettings()).crop_pct
    preprocess = Preprocess((3, size, size), crop_pct=crop)
    try:
        image = load_image(path)
        preprocess.check_size(*image.size)
        pixels = np.asarray(preprocess.eval_transform()(image.convert("RGB")))
    except (OSError, UnreadableImageError) as error:
        raise VitcodError(f"--image {path} can't be read ({reason_of(error)}); name another picture.") from error
    return View(pixels.transpose(1, 2, 0), row, column, side)
