"""A part of a data set."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitcod_cli.data.images import ImageData


class Subset(ImageData):
    """``count`` pictures of ``data``, evenly spaced: of a data set in class order, some of each class."""

    def __init__(self, data: ImageData, count: int) -> None:
        super().__init__(data.num_classes)
        self.data = data
        self.in_memory = data.in_memory
        self.bad_images = data.bad_images
        self._indices = np.arange(count) * len(data) // count

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """As ``data`` has it."""
        return self.data.load(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """As ``data`` has it."""
        return self.data.describe(int(self._indices[index]))


def evenly_spaced(data: ImageData, count: int) -> ImageData:
    """``count`` pictures spread over the whole of ``data``; itself if it has no more, or is a stream."""
    from vitcod_cli.data.streams import StreamImages

    return data if isinstance(data, StreamImages) or len(data) <= count else Subset(data, count)
