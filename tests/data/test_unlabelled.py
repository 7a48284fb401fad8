"""``--dataset images``: folders of images without labels, and both splits of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import write_images

from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError


def split(root: Path, name: str, **settings: object) -> ImageData:
    options = DataSettings(data_path=str(root), dataset="images", **settings)  # type: ignore[arg-type]
    return open_dataset(options, name, num_classes=7)  # type: ignore[arg-type]


def names(data: ImageData) -> list[str]:
    return [data.describe(index) for index in range(len(data))]


def test_one_folder_is_split_in_two(tmp_path: Path) -> None:
    """Whatever its folders are called; every image is in one split, and always in the same."""
    write_images(tmp_path, {".": 7, "holiday": 5, "holiday/beach": 3})
    train, val = split(tmp_path, "train"), split(tmp_path, "val")
    assert (len(train), len(val)) == (12, 3)
    assert not set(names(train)) & set(names(val))
    assert names(val) == names(split(tmp_path, "val"))
    assert not train.labelled
    assert train.load(0)[1] == -1


@pytest.mark.parametrize("held", ["val", "validation"])
def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path, held: str) -> None:
    write_images(tmp_path, {"train": 4, f"{held}/x": 2, "other": 9})
    assert (len(split(tmp_path, "train")), len(split(tmp_path, "val"))) == (4, 2)


def test_a_training_split_alone_is_shared(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 6, "train/b": 4, "notes": 3})
    train, val = split(tmp_path, "train"), split(tmp_path, "val")
    assert (len(train), len(val)) == (8, 2)
    assert all("/train/" in name for name in names(train) + names(val))


def test_few_images_are_still_two_splits(tmp_path: Path) -> None:
    write_images(tmp_path, {"x": 2})
    assert (len(split(tmp_path, "train")), len(split(tmp_path, "val"))) == (1, 1)


def test_what_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(VitcodError, match="holds one image"):
        split(write_images(tmp_path / "one", {"x": 1}), "val")
    with pytest.raises(VitcodError, match="no images in"):
        split(write_images(tmp_path / "none", {"x": 0}), "train")
    with pytest.raises(VitcodError, match="has no folder train/"):
        split(write_images(tmp_path / "half", {"val": 3}), "train")
    with pytest.raises(VitcodError, match="does not exist"):
        split(tmp_path / "nowhere", "train")
    with pytest.raises(VitcodError, match="--class-map has no meaning"):
        split(tmp_path / "one", "val", class_map="x.txt")


def test_fewer_validation_images_are_spread_over_all(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 4, "val/b": 4})
    settings = DataSettings(data_path=str(tmp_path), val_images=2)
    val = open_dataset(settings, "val", num_classes=2)
    assert [val.load(index)[1] for index in range(len(val))] == [0, 1]
    assert len(open_dataset(settings, "train", num_classes=2)) == 6
    assert not split(tmp_path, "val", val_images=2).labelled
