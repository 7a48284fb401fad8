"""What one patch of a real picture looks at: the keys of its row, laid over the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.errors import VitcodError

PATCH = 16
"""Pixels of a patch in the picture that is drawn."""


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


def look_at(path: str, query: tuple[int, int] | None, patches: int) -> View:
    """The picture at ``path``, cropped to a grid of ``patches``, and one of them; the middle one by default.

    Raises:
        VitcodError: if the picture can't be read, the patches are no square, or the patch is outside of it.
    """
    from vitcod_cli.data.decode import UnreadableImageError, load_image, reason_of
    from vitcod_cli.data.preprocess import Preprocess

    side = math.isqrt(patches)
    if side * side != patches or not side:
        raise VitcodError(f"--image needs a square grid of patches, and the map has {patches}; leave it out.")
    row, column = (side // 2, side // 2) if query is None else query
    if row >= side or column >= side:
        raise VitcodError(f"--query {row} {column} is outside of the {side} x {side} patches; count from 0.")
    size = side * PATCH
    preprocess = Preprocess((3, size, size))
    try:
        image = load_image(path)
        preprocess.check_size(*image.size)
        pixels = np.asarray(preprocess.eval_transform()(image.convert("RGB")))
    except (OSError, UnreadableImageError) as error:
        raise VitcodError(f"--image {path} can't be read ({reason_of(error)}); name another picture.") from error
    return View(pixels.transpose(1, 2, 0), row, column, side)
