"""What is an image of a folder, and what is left out: the same in every split, whatever strangers put there."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from pictures import write_images
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key as timms_key

from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.unlabelled import open_unlabelled
from vitcod_cli.data.walk import natural_key, walk
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

JUNK = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", ".Trash-0")


def opened(root: Path, split: str, **options: object) -> tuple[dict[str, int], int, list[str]]:
    """Label of each class, number of images, warnings."""
    reporter = SilentReporter()
    settings = DataSettings(data_path=str(root), **options)
    data = open_dataset(settings, split, num_classes=None, reporter=reporter)
    labels = {Path(data.describe(i)).parent.name: int(data.targets[i]) for i in range(len(data))}
    return labels, len(data), reporter.warnings


def two_splits(root: Path) -> Path:
    return write_images(root, {"train/ant": 2, "train/zebra": 2, "val/ant": 1, "val/zebra": 1})


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("junk", JUNK)
def test_junk_moves_no_label(tmp_path: Path, split: str, junk: str) -> None:
    """In each place where systems leave it: beside the class folders, in one, beside an image."""
    root = two_splits(tmp_path)
    write_images(root, {f"{split}/{junk}": 2, f"{split}/zebra/{junk}": 1})
    (root / split / "ant" / "._0.jpg").write_bytes(b"Mac OS X")
    (root / split / "ant" / ".DS_Store").touch()
    (root / split / ".DS_Store").touch()
    results = {name: opened(root, name) for name in ("train", "val")}
    assert results["train"][:2] == ({"ant": 0, "zebra": 1}, 4)
    assert results["val"][:2] == ({"ant": 0, "zebra": 1}, 2)
    (said,) = results[split][2]
    assert said.startswith(f"Left out in {root / split}: 3 hidden or system names (")
    assert f"zebra/{junk}" in said
    assert not any(name.endswith("DS_Store") for name in said.split())


def test_of_many_names_a_few_are_said(tmp_path: Path) -> None:
    root = two_splits(tmp_path)
    for index in range(40):
        (root / "train" / "ant" / f"._{index:02}.jpg").touch()
    (said,) = opened(root, "train")[2]
    assert "40 hidden or system names (ant/._00.jpg, ant/._01.jpg, ant/._02.jpg, ...)" in said


def test_unlabelled_images_by_the_same_rule(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2, ".hidden": 1, "a/__MACOSX": 1})
    (tmp_path / "a" / "up").symlink_to("..")
    reporter = SilentReporter()
    data = open_unlabelled(tmp_path, reporter)
    assert [data.describe(i) for i in range(len(data))] == [str(tmp_path / "a" / f"{i}.jpg") for i in (0, 1)]
    assert len(reporter.warnings) == 2


@pytest.mark.parametrize("target", [".", "..", "../zebra/../ant"])
def test_a_circle_of_links_ends(tmp_path: Path, target: str) -> None:
    root = two_splits(tmp_path)
    (root / "train" / "ant" / "again").symlink_to(target)
    labels, count, warnings = opened(root, "train")
    assert (labels, count) == ({"ant": 0, "zebra": 1}, 4)
    assert warnings == [f"Not followed in {root / 'train'}: 1 link (ant/again) to folders already walked."]


def test_a_link_to_above_the_split_is_refused(tmp_path: Path) -> None:
    """It would bring the validation images into training."""
    root = two_splits(tmp_path)
    (root / "train" / "ant" / "up").symlink_to("../..")
    with pytest.raises(VitcodError, match=r"train/ant holds images, and so does the folder up/val/ant in it"):
        opened(root, "train")


def test_links_between_all_folders_end(tmp_path: Path) -> None:
    """Twelve folders, in each a link to every other: 12! ways without end, if each way were walked."""
    names = [f"f{index}" for index in range(12)]
    write_images(tmp_path, dict.fromkeys(names, 1))
    for name in names:
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    assert len(walk(tmp_path).samples()) == 12


def test_linked_classes_and_splits_are_followed(tmp_path: Path) -> None:
    """As on clusters: the split is a link, each class is one, and two classes may be the same folder."""
    write_images(tmp_path / "disk", {"a": 2, "b": 1})
    (tmp_path / "links").mkdir()
    for name, target in {"a": "a", "b": "b", "c": "a"}.items():
        (tmp_path / "links" / name).symlink_to(tmp_path / "disk" / target)
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        (tmp_path / "data" / split).symlink_to(tmp_path / "links")
        assert opened(tmp_path / "data", split) == ({"a": 0, "b": 1, "c": 2}, 5, [])


def test_an_image_counts_once_for_each_name(tmp_path: Path) -> None:
    root = two_splits(tmp_path)
    (root / "train" / "ant" / "link.jpg").symlink_to("0.jpg")
    assert opened(root, "train")[1] == 5


def folders_of_timm(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    samples, labels = find_images_and_targets(str(root))
    names = sorted(labels, key=labels.__getitem__)
    return [(path, names[label]) for path, label in samples], names


def test_order_is_timms_on_real_folders(shared: Path) -> None:
    for folder in ("imagenet-sample/train", "imagenet-sample/val", "imagewoof/val", "unlabelled/train"):
        found = walk(shared / "data" / folder)
        assert (found.samples(), found.classes) == folders_of_timm(shared / "data" / folder)


def test_order_is_timms_on_odd_names(tmp_path: Path) -> None:
    """Numbers of any length, spaces, control characters, other scripts, folders called like images, nesting."""
    generator = random.Random(0)
    parts = [
        "a",
        "B",
        "é",
        "漢",
        " ",
        "\n",
        "\x1b[31m",
        "9",
        "10",
        "007",
        "-",
        "x.jpg",
        "٣",
        "ß",
        "'",
        '"',
        "\\",
        "%s",
    ]
    for _ in range(60):
        names = [
            "".join(generator.choices(parts, k=generator.randint(1, 4))) for _ in range(generator.randint(1, 3))
        ]
        folder = tmp_path.joinpath(*(f"{name}{generator.randint(0, 99)}" for name in names))
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            (
                folder / f"{generator.choice(parts)}{generator.randint(0, 999)}.{generator.choice(['jpg', 'PNG'])}"
            ).touch()
    found = walk(tmp_path)
    expected = folders_of_timm(tmp_path)
    keys = [timms_key(path) for path, _ in expected[0]]
    assert len({str(key) for key in keys}) == len(keys), "names that timm's order leaves to chance prove nothing"
    assert (found.samples(), found.classes) == expected


def test_names_that_differ_by_case_or_zeros_have_an_order(tmp_path: Path) -> None:
    """timm's depends on hashes and on the disk."""
    names = ["cat", "Cat", "CAT", "a1", "a01", "a001"]
    write_images(tmp_path, {f"{split}/{name}": 1 for name in names for split in ("train", "val")})
    expected = {"a001": 0, "a01": 1, "a1": 2, "CAT": 3, "Cat": 4, "cat": 5}
    assert opened(tmp_path, "train")[0] == opened(tmp_path, "val")[0] == expected


@pytest.mark.parametrize(
    "name", ["cat ", " cat", "cat\n", "\x1b[31mcat", "x.jpg", "²", "①", "caf\udce9", "-rf", "%s{}", "c" * 255]
)
def test_any_name_of_a_class(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, {f"train/{name}": 2, "train/b": 1, f"val/{name}": 1})
    (label,) = opened(tmp_path, "val")[0].values()
    assert opened(tmp_path, "train")[0][name] == label
    assert natural_key("²9") > natural_key("1")


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing over it would shift labels. (Root may read all: the refusal is simulated.)"""
    root, real = two_splits(tmp_path), os.scandir

    def scandir(path: object) -> object:
        if str(path).endswith("ant"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for split in ("train", "val"):
        with pytest.raises(
            VitcodError, match=rf"{split}/ant can't be read \(Permission denied\); make it readable"
        ):
            opened(root, split)


def test_a_link_to_itself_is_an_unreadable_image_or_nothing(tmp_path: Path) -> None:
    root = two_splits(tmp_path)
    (root / "train" / "self").symlink_to("self")
    (root / "train" / "ant" / "self.jpg").symlink_to("self.jpg")
    assert opened(root, "train")[1] == 5


def test_very_deep_folders(tmp_path: Path) -> None:
    """Deeper than Python recurses, and deeper than a path may be long."""
    here = os.getcwd()
    for name, depth in (("d", 1200), ("d" * 250, 20)):
        try:
            os.chdir(tmp_path)
            for _ in range(depth):
                os.mkdir(name)
                os.chdir(name)
            if depth > 1000:
                assert walk(tmp_path).samples() == []
            else:
                with pytest.raises(VitcodError, match="File name too long"):
                    walk(tmp_path)
        finally:
            for _ in range(depth):  # shutil.rmtree recurses
                os.chdir("..")
                os.rmdir(name)
            os.chdir(here)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_within_a_class_is_refused(tmp_path: Path, split: str) -> None:
    """It would be a class of its own, and move the labels of this split only."""
    root = two_splits(tmp_path)
    write_images(root, {f"{split}/zebra/aside/old": 1})
    with pytest.raises(VitcodError, match=r"zebra holds images, and so does the folder aside/old in it"):
        opened(root, split)
    with pytest.raises(VitcodError, match=r"zebra holds images"):  # val takes its labels from train
        opened(root, "val")
    (tmp_path / "map.txt").write_text("zebra\nant\n")
    assert opened(root, split, class_map=str(tmp_path / "map.txt"))[0] == {"zebra": 0, "ant": 1}


def test_folders_of_one_name_in_all_classes_are_refused(tmp_path: Path) -> None:
    """Tiny ImageNet's layout: innermost folders are the classes, and all are called images."""
    write_images(tmp_path, {"train/n01/images": 2, "train/n02/images": 2})
    with pytest.raises(VitcodError, match="lie in folders called images, which would be their one class"):
        opened(tmp_path, "train")


def test_nested_classes_of_val_have_the_labels_of_train(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/animals/cat": 1, "train/plants/ash": 1, "train/plants/oak": 1})
    write_images(tmp_path, {"val/animals/cat": 1, "val/plants/oak": 1})
    assert opened(tmp_path, "train")[0] == {"ash": 0, "cat": 1, "oak": 2}
    assert opened(tmp_path, "val")[0] == {"cat": 1, "oak": 2}
    write_images(tmp_path, {"val/animals/dog": 1})
    with pytest.raises(VitcodError, match=r"1 class folders that the training split has not \(dog\)"):
        opened(tmp_path, "val")


def test_half_nested_training_classes_count_in_val(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/zoo/ant": 1, "train/cat": 1, "val/cat": 1})
    assert opened(tmp_path, "train")[0] == {"ant": 0, "cat": 1}
    assert opened(tmp_path, "val")[0] == {"cat": 1}


def test_splits_labelled_by_different_rules_are_refused(tmp_path: Path) -> None:
    """val alone would have ImageNet's labels, and train with its one foreign folder ranks."""
    write_images(tmp_path, {"train/n01440764": 1, "train/n02102040": 1, "train/cat": 1})
    write_images(tmp_path, {"val/n01440764": 1, "val/n02102040": 1})
    with pytest.raises(VitcodError, match=r"ImageNet's, but not all of the training split \(cat\)"):
        opened(tmp_path, "val")


def test_a_class_that_is_a_file_in_the_other_split(tmp_path: Path) -> None:
    root = two_splits(tmp_path)
    write_images(root, {"train/bee": 1})
    (root / "val" / "bee").write_text("no folder")
    assert opened(root, "val")[0] == {"ant": 0, "zebra": 2}


def test_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcod_cli.data import folder
    from vitcod_cli.data.walk import ImageFolder, Walk

    names = [f"c{index}" for index in range(20_000)]
    found = Walk("x", [ImageFolder(f"x/{name}", (name,), ["0.jpg"]) for name in names], names)
    monkeypatch.setattr(folder, "walk", lambda root: found)
    (tmp_path / "train").mkdir()
    assert opened(tmp_path, "train")[0] == {name: label for label, name in enumerate(names)}


def test_split_given_as_shards_without_their_kind(tmp_path: Path) -> None:
    two_splits(tmp_path)
    with pytest.raises(VitcodError, match=r"--train-split x-\{0\.\.9\}\.tar in shards give --dataset wds/NAME"):
        opened(tmp_path, "train", train_split="x-{0..9}.tar")
