"""Names of models in a table: short, and no two alike."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from vitcod_cli.evaluation.names import distinct, names_of


def test_the_parts_of_a_path_that_it_takes() -> None:
    assert names_of([("a/run/last.pth", None), ("b/best.pth", None)]) == ["last.pth", "best.pth"]
    assert names_of([("a/last.pth", None), ("b/last.pth", None)]) == ["a/last.pth", "b/last.pth"]
    assert names_of([("a.pth", None), ("a.pth", None)]) == ["1: a.pth", "2: a.pth"]
    assert names_of([("x/a.pth", "m/0.5.npy"), ("x/a.pth", "m/0.9.npy")], "x/a.pth") == [
        "a.pth",
        "0.5.npy",
        "0.9.npy",
    ]
    assert names_of([("a.pth", "m/1.npy"), ("b.pth", "m/2.npy")]) == ["a.pth + 1.npy", "b.pth + 2.npy"]


LONG = "a_very_long_experiment"
CASES = {
    "other beginnings": [f"{letter}{LONG}_epoch_100_of_the_run.pth" for letter in "ab"],
    "other ends": [f"{LONG}_epoch_100_of_the_run_{number}.safetensors" for number in range(9)],
    "other middles": [f"{LONG}_{letter}_{LONG}.safetensors" for letter in "abc"],
    "all over": [f"{a}_{LONG}_{b}_{LONG}_{c}" for a in "ab" for b in "ab" for c in "ab"],
    "one in another": [LONG * 2, LONG * 3, LONG * 4],
    "wide letters": [f"模型{letter}" * 20 for letter in "甲乙"],
    "line ends": ["a\nb", "a\\nb"],
    "one of many": [LONG * 9, "b", "c"],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [16, 17, 30])
def test_no_two_are_alike(case: str, width: int) -> None:
    shown = distinct(CASES[case], width)
    assert len(set(shown)) == len(shown)
    assert all(cell_len(name) <= width and name.isprintable() for name in shown)


def test_what_fits_stays() -> None:
    assert distinct(["run0/last.safetensors", "b"], 40) == ["run0/last.safetensors", "b"]
    assert distinct(["run0/last.safetensors", "b"], 12) == ["run0/last", "b"]
