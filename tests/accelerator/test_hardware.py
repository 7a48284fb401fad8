"""The YAML file of a chip, from careful and careless users."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcod_cli.accelerator.hardware import Hardware, default_yaml, read_hardware
from vitcod_cli.errors import VitcodError


def test_the_file_to_copy_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(default_yaml())
    assert read_hardware(str(path)) == read_hardware(None) == Hardware()
    named = [line.partition(":")[0] for line in default_yaml().splitlines() if line and line[0] not in "# "]
    assert named == list(Hardware().flat())


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text("lines: 128\nbandwidth: 1e9\n")
    assert read_hardware(str(path)) == Hardware(lines=128, bandwidth=1e9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lines: 0", "lines must be"),
        ("lines: -8", "lines must be"),
        ("lines: 8.5", "lines '8.5' is not a whole number"),
        ("lines: many", "lines 'many' is not a whole number"),
        ("lines:", "lines None is not a whole number"),
        ("lines: yes", "lines True is not a whole number"),
        ("lines: [1, 2]", "is not a whole number"),
        ("lines: 10", "10 lines can't be divided into 8 groups"),
        ("clock: .nan", "is not a number|must be"),
        ("clock: nan", "clock must be"),
        ("clock: inf", "clock must be"),
        ("bandwidth: 0", "bandwidth must be"),
        ("bandwidth: 1e999", "bandwidth must be"),
        ("line: 64", "'line' is no part of the hardware; did you mean lines"),
        ("zzz: 64", "'zzz' is no part of the hardware; there are lines"),
        ("lines: 64\nlines: 32", "'lines' is given twice"),
        ("- 64", "lines like 'lines: 64'"),
        ("lines: {a: 1}", "no plain value"),
        ("lines: 64: 3", "not valid YAML"),
        ("x" * 300_000, "larger than"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(text)
    with pytest.raises(VitcodError, match=f"^--hardware.*({says})"):
        read_hardware(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VitcodError, match=r"--hardware .*none\.yaml does not exist"):
        read_hardware(str(tmp_path / "none.yaml"))
