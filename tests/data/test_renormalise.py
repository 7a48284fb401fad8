"""Images of one normalisation in another: the pixels stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.renormalise import Renormalise

HALVES = (0.5, 0.5, 0.5)
STUDENT = Preprocess((3, 8, 8))


class Model(nn.Module):
    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        self.pretrained_cfg = cfg


def test_the_pixels_stay() -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = STUDENT.to_device(pixels, torch.device("cpu"))
    renormalise = Renormalise.for_model(Model({"mean": HALVES, "std": (0.5, 0.25, 0.1)}), STUDENT)
    expected = (pixels / 255 - 0.5) / torch.tensor([0.5, 0.25, 0.1]).view(3, 1, 1)
    torch.testing.assert_close(renormalise(images), expected, rtol=1e-5, atol=1e-5)
    assert not renormalise.state_dict()


def test_one_channel_takes_the_average_of_three() -> None:
    grey = Preprocess((1, 8, 8), mean=(0.2,), std=(0.4,))
    renormalise = Renormalise.for_model(Model({"mean": (0.4, 0.5, 0.6), "std": HALVES}), grey)
    torch.testing.assert_close(renormalise(torch.zeros(1, 1, 2, 2)), torch.full((1, 1, 2, 2), (0.2 - 0.5) / 0.5))


@pytest.mark.parametrize(
    "model", [Model({"mean": STUDENT.mean, "std": list(STUDENT.std)}), Model({}), nn.Identity()]
)
def test_nothing_is_computed_where_the_two_are_equal_or_the_model_does_not_say(model: nn.Module) -> None:
    images = torch.randn(2, 3, 8, 8)
    assert Renormalise.for_model(model, STUDENT)(images) is images
