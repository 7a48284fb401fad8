from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.labels import imagenet_labels, label_map, read_class_map
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError

IMAGENETTE = ["n01440764", "n02102040", "n02979186"]


@pytest.mark.parametrize("num_classes", [None, 1000])
def test_wnids_get_imagenet_labels_whichever_subset_is_there(num_classes: int | None) -> None:
    labels, count = label_map(IMAGENETTE, num_classes)
    assert labels == {"n01440764": 0, "n02102040": 217, "n02979186": 482}
    assert count == 1000


def test_wnids_are_ranked_for_another_head() -> None:
    assert label_map(IMAGENETTE, 3) == ({"n01440764": 0, "n02102040": 1, "n02979186": 2}, 3)


@pytest.mark.parametrize("foreign", ["n99999999", "cat", "n0144076"])
def test_one_foreign_folder_means_ranks(foreign: str) -> None:
    labels, count = label_map([*IMAGENETTE, foreign], 1000)
    assert labels == {name: rank for rank, name in enumerate([*IMAGENETTE, foreign])}
    assert count == 4


def test_imagenet_sample_has_the_rank_among_all_thousand(shared: Path) -> None:
    root = shared / "data" / "imagenet-sample"
    settings = DataSettings(data_path=str(root))
    wnids = sorted(folder.name for split in ("train", "val") for folder in (root / split).iterdir())
    assert len(wnids) == 1000
    rank = {wnid: place for place, wnid in enumerate(wnids)}
    for split in ("train", "val"):
        data = open_dataset(settings, split, num_classes=1000)
        assert len(data) == 500
        assert data.num_classes == 1000
        for index in range(500):
            path = Path(data.describe(index))
            assert path.is_file()
            assert data.targets[index] == rank[path.parent.name]


def test_class_map_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "map.txt"
    file.write_text("\ufeffdog\n cat \nbird\n\n", encoding="utf-8")
    assert read_class_map(str(file)) == {"dog": 0, "cat": 1, "bird": 2}


def test_class_map_of_json(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"dog": 7, "cat": 7, "bird": 0}))
    assert read_class_map(str(file)) == {"dog": 7, "cat": 7, "bird": 0}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("map.txt", b"dog\n\ncat\n", "empty line"),
        ("map.txt", b"", "empty line"),
        ("map.txt", b"dog\ncat\ndog\n", "dog twice"),
        ("map.txt", b"\xff\xfe\x00\x80", "not a text file"),
        ("map.json", b"{", "not valid JSON"),
        ("map.json", b'["dog"]', "whole numbers from 0"),
        ("map.json", b"{}", "whole numbers from 0"),
        ("map.json", b'{"dog": -1}', "whole numbers from 0"),
        ("map.json", b'{"dog": true}', "whole numbers from 0"),
        ("map.json", b'{"dog": 1.5}', "whole numbers from 0"),
        ("map.txt", "dog\ncat\n".encode("utf-16"), "not a text file in UTF-8"),
        ("map.txt", "dog\ncat\n".encode("utf-16-le"), "it has zero bytes"),
        ("map.txt", b"dog\n\0\ncat\n", "it has zero bytes"),
        ("map.json", b"[" * 1_000_000, "nested too deeply"),
        ("map.json", b'{"a":' * 500_000 + b"1" + b"}" * 500_000, "nested too deeply"),
        ("map.json", b'{"dog": 0, "cat": 1, "dog": 2}', "it names 'dog' twice"),
        ("map.json", b'{"dog": 1e3}', "whole numbers from 0 to 999999"),
        ("map.json", b'{"dog": NaN}', "whole numbers"),
        ("map.json", b'{"dog": 1000000}', "whole numbers from 0 to 999999"),
        ("map.json", b'{"dog": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        ("map.json", b'{"dog": "0"}', "whole numbers"),
        ("map.json", b'{"dog": null}', "whole numbers"),
    ],
)
def test_class_map_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VitcodError, match=says) as error:
        read_class_map(str(tmp_path / name))
    assert "--class-map" in str(error.value)
    assert len(str(error.value)) < 400


def test_class_map_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VitcodError, match=r"--class-map .*No such file"):
        read_class_map(str(tmp_path / "none.txt"))
    with pytest.raises(VitcodError, match=r"--class-map .*: a folder, not a file"):
        read_class_map(str(tmp_path))


def test_timms_list_is_in_order() -> None:
    wnids = list(imagenet_labels())
    assert wnids == sorted(wnids)
    assert len(wnids) == 1000


@pytest.mark.parametrize("name", ["map.txt", "map.json"])
def test_class_map_that_is_no_file_or_too_large(tmp_path: Path, name: str) -> None:
    """A pipe waits for its writer and /dev/zero never ends; a file is measured before it is read."""
    path = tmp_path / name
    os.mkfifo(path)
    for target in (path, "/dev/zero", "/dev/stdin"):
        with pytest.raises(VitcodError, match=r"--class-map .*: not a regular file"):
            read_class_map(str(target))
    path.unlink()
    path.touch()
    os.truncate(path, 2 << 30)
    with pytest.raises(VitcodError, match="2,147,483,648 bytes, more than 16,777,216"):
        read_class_map(str(path))


def test_class_map_of_many_lines(tmp_path: Path) -> None:
    """In one pass: a class named twice on the last line included."""
    names = [f"{number:x}" for number in range(1_000_000)]
    path = tmp_path / "map.txt"
    path.write_text("\n".join(names))
    assert read_class_map(str(path))["ff"] == 255
    path.write_text("\n".join([*names[:-1], "ff"]))
    with pytest.raises(VitcodError, match="names the class ff twice"):
        read_class_map(str(path))
    path.write_text("\n".join([*names, "more"]))
    with pytest.raises(VitcodError, match="1,000,001 lines; there may be 1,000,000 classes"):
        read_class_map(str(path))


def test_only_line_ends_end_a_line(tmp_path: Path) -> None:
    """Python's splitlines splits at characters that a name may have, too: all labels after it would shift."""
    path = tmp_path / "map.txt"
    path.write_bytes("a\u2028b\r\nc\x0bd\re\x85f\n".encode())
    assert read_class_map(str(path)) == {"a\u2028b": 0, "c\x0bd": 1, "e\x85f": 2}
