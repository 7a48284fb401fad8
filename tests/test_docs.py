"""The pages name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import vitcod_cli

PACKAGE = Path(vitcod_cli.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"


def test_files_that_the_architecture_names() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE.read_text(encoding="utf-8")))
    missing = [name for name in named if not ((PACKAGE / name).is_file() or (PACKAGE.parent / name).is_file())]
    assert len(named) > 20
    assert not missing


def test_every_room_stands_in_the_tree() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    tree = text[text.index("    vitcod_cli/") : text.index("A room imports")]
    named = set(re.findall(r"^ {6}(\w+(?:/kernels)?)/? ", tree, re.MULTILINE))
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named - {"model/kernels"} == {room for room in rooms if room not in ("__pycache__", "py.typed")}


def test_what_the_readme_calls_from_python_is_there() -> None:
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## From Python") : text.index("## From the published code")]
    named = set(re.findall(r"vitcod_cli\.(\w+)", section))
    named |= {
        name.strip() for line in re.findall(r"from vitcod_cli import (.+)", section) for name in line.split(",")
    }
    assert {"load", "compress", "SparseOptions"} <= named
    assert named <= set(vitcod_cli.__all__)


def test_promises_name_tests_that_there_are() -> None:
    root = PACKAGE.parent
    pages = [(root / page).read_text(encoding="utf-8") for page in ("docs/promises.md", "README.md")]
    named = {name for text in pages for name in re.findall(r"`(tests/[\w/]+(?:\.py)?(?:::\w+)?)`", text)}
    assert len(named) > 50
    missing = []
    for name in named:
        path, _, function = name.partition("::")
        found = (root / path).exists()
        if function:
            found = found and f"\ndef {function}(" in (root / path).read_text(encoding="utf-8")
        if not found:
            missing.append(name)
    assert not missing
