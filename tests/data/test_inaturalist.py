from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pictures import write_images

from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError

CATEGORIES = [
    {"id": 0, "name": "robin", "order": "birds"},
    {"id": 1, "name": "eagle", "order": "birds"},
    {"id": 2, "name": "oak", "order": "trees"},
]


def write_inaturalist(root: Path, year: int, *, flat: bool) -> Path:
    """Annotations name the categories 2, 0, 1 in this order; val has one picture of each."""
    listings: dict[str, dict[str, Any]] = {
        "train": {"annotations": [{"category_id": c} for c in (2, 0, 2, 1)], "images": []},
        "val": {"images": []},
    }
    for split, categories in (("train", (2, 0, 2, 1)), ("val", (0, 1, 2))):
        for index, category in enumerate(categories):
            folder = f"train_val{year}/" + (f"{category}" if flat else f"Kingdom/{category}")
            write_images(root / folder, {f"{split}{index}": 1})
            name = f"{split}{index}.jpg"
            (root / folder / f"{split}{index}" / "0.jpg").rename(root / folder / name)
            listings[split]["images"].append({"file_name": f"train_val{year}/Kingdom/{category}/{name}"})
    for split, listing in listings.items():
        (root / f"{split}{year}.json").write_text(json.dumps(listing))
    (root / "categories.json").write_text(json.dumps(CATEGORIES))
    return root


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(("name", "year"), [("INAT", 2018), ("INAT19", 2019)])
def test_labels_in_the_order_of_the_training_annotations(tmp_path: Path, name: str, year: int, flat: bool) -> None:
    settings = DataSettings(dataset=name, data_path=str(write_inaturalist(tmp_path, year, flat=flat)))
    train, val = (open_dataset(settings, split, num_classes=None) for split in ("train", "val"))
    assert train.num_classes == val.num_classes == 3
    assert [train[i][1] for i in range(4)] == [0, 1, 0, 2]
    assert [val[i][1] for i in range(3)] == [1, 2, 0]


def test_other_rank_of_the_taxonomy(tmp_path: Path) -> None:
    root = write_inaturalist(tmp_path, 2018, flat=True)
    data = open_dataset(
        DataSettings(dataset="INAT", data_path=str(root), inat_category="order"), "val", num_classes=2
    )
    assert [data[i][1] for i in range(3)] == [1, 1, 0]


def test_files_that_are_missing_or_foreign(tmp_path: Path) -> None:
    settings = DataSettings(dataset="INAT", data_path=str(tmp_path))
    with pytest.raises(VitcodError, match=r"Can't read .*val2018\.json: No such file"):
        open_dataset(settings, "val", num_classes=None)
    with pytest.raises(VitcodError, match="--data-path is missing"):
        open_dataset(settings.changed(data_path=None), "val", num_classes=None)
    write_inaturalist(tmp_path, 2018, flat=True)
    with pytest.raises(VitcodError, match="not those of iNaturalist 2018"):
        open_dataset(settings.changed(inat_category="genus"), "val", num_classes=None)
    (tmp_path / "categories.json").write_text("{")
    with pytest.raises(VitcodError, match=r"categories\.json is not valid JSON"):
        open_dataset(settings, "val", num_classes=None)


def hostile(root: Path, name: str, content: Any) -> str:
    """What is said when ``name`` holds this."""
    write_inaturalist(root, 2018, flat=True)
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(VitcodError) as error:
        open_dataset(DataSettings(dataset="INAT", data_path=str(root)), "val", num_classes=None)
    assert len(str(error.value)) < 600
    return str(error.value)


def images(name: object) -> dict[str, Any]:
    return {"images": [{"file_name": name}]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("categories.json", "[" * 1_000_000, "nested too deeply"),
        ("categories.json", {"0": {"name": "robin"}}, "not those of iNaturalist 2018"),
        ("categories.json", [{"name": 5}] * 3, "'5' is no text"),
        ("categories.json", [], "there is no category 2"),
        ("categories.json", "null", "not those of iNaturalist"),
        ("train2018.json", {"annotations": [{"category_id": -1}]}, "there is no category -1"),
        ("train2018.json", {"annotations": [{"category_id": 1.5}]}, r"there is no category 1\.5"),
        ("train2018.json", {"annotations": [{"category_id": True}]}, "there is no category True"),
        ("train2018.json", '{"annotations": [{"category_id": Infinity}]}', "there is no category inf"),
        ("train2018.json", {"annotations": 7}, "not those of iNaturalist"),
        ("train2018.json", {"annotations": [{"category_id": 0}]}, "'eagle'|'oak'"),
        ("val2018.json", [1], "not those of iNaturalist"),
        ("val2018.json", {"images": []}, "lists no images"),
        ("val2018.json", {"images": [{}]}, "file_name"),
        ("val2018.json", images("a/b/0/../../etc/passwd"), "is no split/kingdom/category/file"),
        ("val2018.json", images("/etc/0/passwd"), "is no split/kingdom/category/file"),
        ("val2018.json", images("a/b/0"), "is no split/kingdom/category/file"),
        ("val2018.json", images("a/b/-1/x.jpg"), "there is no category -1"),
        ("val2018.json", images("a/b/x/x.jpg"), "invalid literal"),
        ("val2018.json", images("a/b/0/\0.jpg"), "is no split/kingdom/category/file"),
        ("val2018.json", images("a/b/0/\ud800.jpg"), "surrogates not allowed"),
        ("val2018.json", images("x" * 10_000_000), "is no split/kingdom/category/file"),
        ("val2018.json", images(["a"]), "is no text"),
    ],
)
def test_hostile_listings_are_one_sentence(tmp_path: Path, name: str, content: Any, says: str) -> None:
    assert re.search(says, hostile(tmp_path, name, content))


def test_listings_that_are_no_files_or_too_large(tmp_path: Path) -> None:
    settings = DataSettings(dataset="INAT", data_path=str(write_inaturalist(tmp_path, 2018, flat=True)))
    path = tmp_path / "val2018.json"
    os.truncate(path, 1 << 30)
    with pytest.raises(VitcodError, match="1,073,741,824 bytes, more than 268,435,456"):
        open_dataset(settings, "val", num_classes=None)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(VitcodError, match="not a regular file"):
        open_dataset(settings, "val", num_classes=None)
