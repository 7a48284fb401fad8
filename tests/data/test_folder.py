from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from pictures import write_images

from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter


def targets_by_class(root: Path, split: str, num_classes: int | None = None, **options: object) -> dict[str, int]:
    data = open_dataset(DataSettings(data_path=str(root), **options), split, num_classes=num_classes)
    return {Path(data.describe(i)).parent.name: data.load(i)[1] for i in range(len(data))}


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_val_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1, f"{name}/a": 1, f"{name}/b": 2})
    data = open_dataset(DataSettings(data_path=str(tmp_path)), "val", num_classes=None)
    assert len(data) == 3
    assert data.num_classes == 2


def test_split_by_an_own_name(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "val/a": 1, "test/a": 3})
    data = open_dataset(DataSettings(data_path=str(tmp_path), val_split="test"), "val", num_classes=None)
    assert len(data) == 3
    with pytest.raises(VitcodError, match=r"no folder held-out/, only .*train.*; .*--val-split"):
        open_dataset(DataSettings(data_path=str(tmp_path), val_split="held-out"), "val", num_classes=None)


def test_classes_are_ranked_in_natural_order(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/class10": 1, "train/class9": 1, "val/class10": 1, "val/class9": 1})
    assert targets_by_class(tmp_path, "train") == {"class9": 0, "class10": 1}


def test_val_with_fewer_classes_has_the_labels_of_train(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 1, "val/a": 1, "val/c": 1})
    assert targets_by_class(tmp_path, "val") == {"a": 0, "c": 2}


def test_val_with_a_class_that_train_has_not(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "val/z": 1})
    with pytest.raises(VitcodError, match=r"1 class folders that the training split has not \(z\); .*--class-map"):
        targets_by_class(tmp_path, "val")


def test_wnids_of_another_head_must_agree_too(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/n01440764": 1, "train/n02102040": 1, "val/n02102040": 1, "val/n02979186": 1})
    assert targets_by_class(tmp_path, "val", 1000) == {"n02102040": 217, "n02979186": 482}
    with pytest.raises(VitcodError, match="n02979186"):
        targets_by_class(tmp_path, "val", 2)
    (tmp_path / "val/n02979186").rename(tmp_path / "val/n01440764")
    (tmp_path / "val/n01440764").rename(tmp_path / "n01440764")
    assert targets_by_class(tmp_path, "val", 2) == {"n02102040": 1}


def test_val_alone_is_enough_for_evaluation(tmp_path: Path) -> None:
    write_images(tmp_path, {"val/a": 1, "val/b": 1})
    assert targets_by_class(tmp_path, "val") == {"a": 0, "b": 1}


def test_nested_class_folders_are_named_by_the_innermost(tmp_path: Path) -> None:
    write_images(
        tmp_path, {"train/animals/cat": 1, "train/plants/oak": 1, "val/animals/cat": 1, "val/plants/oak": 1}
    )
    assert targets_by_class(tmp_path, "train") == targets_by_class(tmp_path, "val") == {"cat": 0, "oak": 1}


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 0, "train/c": 1})
    with pytest.raises(VitcodError, match=r"class folder b holds no images.*--class-map"):
        targets_by_class(tmp_path, "train")


def test_class_folder_without_an_image_file_is_empty(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 0, "train/c": 0})
    (tmp_path / "train/b/notes.txt").write_text("none")
    with pytest.raises(VitcodError, match="class folders b, c hold no images"):
        targets_by_class(tmp_path, "train")


def test_hidden_folders_are_not_classes(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/.ipynb_checkpoints": 0})
    assert targets_by_class(tmp_path, "train") == {"a": 0}


def test_loose_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train": 1})
    with pytest.raises(VitcodError, match=r"0\.jpg lies beside the class folders"):
        targets_by_class(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_path_mistakes(tmp_path: Path, split: str) -> None:
    write_images(tmp_path, {"val/a": 1, "train/a": 1, "nothing": 0, "empty/train": 0, "empty/val": 0})
    (tmp_path / "file").touch()
    for path, says in {
        "missing": "does not exist; give the folder that holds train/ and val/",
        "file": "is not a folder",
        "val": f"seems to be a split itself: give the folder above it, {tmp_path}",
        "nothing": "has no folder .*; put the .* images there",
        "empty": "no images in .*a folder for each class",
    }.items():
        with pytest.raises(VitcodError, match=says):
            open_dataset(DataSettings(data_path=str(tmp_path / path)), split, num_classes=None)
    with pytest.raises(VitcodError, match="--data-path is missing"):
        open_dataset(DataSettings(), split, num_classes=None)


def test_more_classes_than_outputs(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 1})
    with pytest.raises(VitcodError, match="3 classes but the model has 2 outputs; give --num-classes 3"):
        targets_by_class(tmp_path, "train", num_classes=2)


def test_fewer_classes_than_outputs_is_said(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1})
    reporter = SilentReporter()
    open_dataset(DataSettings(data_path=str(tmp_path)), "train", num_classes=1000, reporter=reporter)
    assert len(reporter.warnings) == 1
    assert "2 classes and the model has 1000 outputs" in reporter.warnings[0]


def test_class_map_goes_before_every_rule(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/n01440764": 1, "train/n02102040": 1, "train/n02979186": 0})
    (tmp_path / "map.txt").write_text("n02102040\nn01440764\n")
    labels = targets_by_class(tmp_path, "train", 1000, class_map=str(tmp_path / "map.txt"))
    assert labels == {"n02102040": 0, "n01440764": 1}


def test_classes_left_out_of_the_class_map_are_said(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 1})
    (tmp_path / "map.json").write_text('{"c": 4}')
    settings, reporter = (
        DataSettings(data_path=str(tmp_path), class_map=str(tmp_path / "map.json")),
        SilentReporter(),
    )
    data = open_dataset(settings, "train", num_classes=5, reporter=reporter)
    assert [data.load(i)[1] for i in range(len(data))] == [4]
    assert data.num_classes == 5
    assert "2 class folders are not in --class-map" in reporter.warnings[0]
    (tmp_path / "map.json").write_text('{"elephant": 0}')
    with pytest.raises(VitcodError, match="names none of the class folders"):
        open_dataset(settings, "train", num_classes=None)


def test_names_that_are_not_text_survive(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/é ü": 1, "train/b": 1})
    odd = tmp_path / "train" / "b" / b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / "train/b/0.jpg").rename(odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    data = open_dataset(DataSettings(data_path=str(tmp_path)), "train", num_classes=None)
    assert sorted(data[i][0].size for i in range(2)) == [(16, 20), (16, 20)]
    assert str(odd) in {data.describe(i) for i in range(2)}


def test_tar_of_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, {"n01440764": 2, "n02979186": 1})
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        for folder in ("n01440764", "n02979186"):
            tar.add(tmp_path / folder, arcname=folder)
    data = open_dataset(DataSettings(data_path=str(tmp_path / "val.tar")), "val", num_classes=1000)
    assert sorted(data[i][1] for i in range(3)) == [0, 0, 482]
    assert data.describe(0).endswith(".jpg")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(VitcodError, match=r"--dataset cifra10 is not known: .*digits.*torch/"):
        open_dataset(DataSettings(dataset="cifra10"), "train", num_classes=None)
