from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from pictures import CPU

from vitcod_cli.data import digits
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.preprocess import preprocess_for
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError

SETTINGS = DataSettings(dataset="digits")


def test_same_as_scikit_learns_bit_for_bit() -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    with np.load(str(files("vitcod_cli.data") / "digits.npz")) as ours:
        assert np.array_equal(ours["images"], original.images)
        assert np.array_equal(ours["targets"], original.target)


def test_splits_are_disjoint_complete_and_balanced() -> None:
    train, val = (open_dataset(SETTINGS, split, num_classes=10) for split in ("train", "val"))
    assert len(train) + len(val) == 1797
    with np.load(str(files("vitcod_cli.data") / "digits.npz")) as data:
        whole = np.bincount(data["targets"])
    for split, share in ((train, 0.8), (val, 0.2)):
        counts = np.bincount([split[i][1] for i in range(len(split))])
        assert np.all(abs(counts - share * whole) <= 1)
    again = open_dataset(SETTINGS, "val", num_classes=10)
    assert all(val[i][0].tobytes() == again[i][0].tobytes() for i in range(len(val)))


def test_pixels_span_the_range_of_bytes() -> None:
    data = open_dataset(SETTINGS, "train", num_classes=10)
    pixels = np.stack([np.asarray(data[i][0]) for i in range(len(data))])
    assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 17)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32, 48])
def test_any_channels_and_size(channels: int, size: int) -> None:
    preprocess = preprocess_for({}, (channels, size, size), SETTINGS)
    data = open_dataset(SETTINGS, "val", num_classes=10)
    images, _ = next(iter(eval_loader(data, preprocess, batch_size=16, workers=None, device=CPU)))
    assert images.shape == (16, channels, size, size)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other arrays", "pickled", "a folder"])
def test_a_damaged_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    whole = (files("vitcod_cli.data") / "digits.npz").read_bytes()
    file = tmp_path / "digits.npz"
    if damage == "a folder":
        file.mkdir()
    elif damage == "other arrays":
        np.savez(file, images=np.zeros((3, 8, 8)), targets=np.zeros(3))
    elif damage == "pickled":
        np.savez(file, images=np.array([object()]), targets=np.zeros(3))
    elif damage != "missing":
        file.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
    monkeypatch.setattr(digits, "files", lambda package: tmp_path)
    with pytest.raises(VitcodError, match=r"The digits that come with vitcod can't be read .*install vitcod anew"):
        open_dataset(SETTINGS, "val", num_classes=10)
