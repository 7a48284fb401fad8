"""The demonstration: what it promises a newcomer."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli, the_error

from vitcod_cli.steps.demo import Row, table


def test_table_fits_the_terminal() -> None:
    rows = [
        Row("dense", 100.0, 0.1, 0.0, 12_345_678_900),
        Row("low-rank, 4 heads -> 2", 9.5, 12.25, 0.905, 1_234_567_890),
    ]
    lines = table(rows)
    assert max(len(line) for line in lines) <= 80
    assert lines[-1].startswith("low-rank, 4 heads -> 2 ")
    assert lines[-1].split()[-5:] == ["9.50", "12.250", "90.5%", "1,234,567,890", "(10%)"]


def test_an_earlier_demonstration_is_not_overwritten(cli: Cli) -> None:
    Path("vitcod-demo").mkdir()
    Path("vitcod-demo/precious.txt").write_text("mine")
    assert "--overwrite" in the_error(cli("demo"))


@pytest.mark.slow
def test_the_demonstration_keeps_its_promise(cli: Cli) -> None:
    outcome = cli("demo")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    accuracy = [float(line[24:].split()[0]) for line in lines[3:8]]
    dense, lowrank, _, sparse_80, _ = accuracy
    assert dense > 95
    assert lowrank > dense - 3
    assert sparse_80 > dense - 3
    assert lines[6].endswith("(20%)")
    pictures = {path.name for path in Path("vitcod-demo/plots").iterdir()}
    assert {"block_00.png", "block_01.png", "block_02.png"} <= pictures
    assert "sparse-90" in Path("vitcod-demo/report.html").read_text()
    assert outcome.err.count("$ vitcod ") == 11, "every command is shown"
