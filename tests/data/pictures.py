"""Small data sets that the tests of this folder make themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess

CPU = torch.device("cpu")
SMALL = Preprocess(input_size=(3, 32, 32), crop_pct=1.0)
MEDIUM = Preprocess(input_size=(3, 48, 48))


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16)) -> Path:
    """``{"train/cat": 3}``: three random JPEGs there; 0 makes an empty folder."""
    random = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{index}.jpg")
    return root


class Numbered(ImageData):
    """Grey pictures in memory whose brightness and label are their index; ``bad`` ones can't be read."""

    in_memory = True

    def __init__(self, length: int, bad: Iterable[int] = (), max_bad_images: int = 10) -> None:
        super().__init__(num_classes=length, max_bad_images=max_bad_images)
        self.length = length
        self.bad = set(bad)

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> tuple[Image.Image, int]:
        if index in self.bad:
            raise OSError("image file is truncated")
        return Image.new("L", (24, 20), index % 256), index


@contextmanager
def process(rank: int, world_size: int) -> Iterator[None]:
    """What is made in the block reads the share of process ``rank`` of ``world_size``."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    with mock.patch.dict(os.environ, environment):
        yield
