"""``vitcod sweep`` as a user types it: table, files and pictures, points added later, points that can't be had."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, Outcome

import vitcod_cli.pipeline.stages
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.masks.statistics import head_sparsity

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
QUICK = ("--calibrate-steps", 2, "--calibrate-images", 6, "--calibrate-batch-size", 3, "--workers", 0)


@pytest.fixture
def sweep(cli: Cli, image_folder: Path) -> Any:
    words = ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, "--batch-size", 10, "--workers", 0)
    assert cli(*words, "--epochs", 0, "--no-repeated-aug", "--output-dir", "dense").code == 0

    def run(*words: object) -> Outcome:
        start = ("sweep", "--init-from", "dense/last.safetensors", "--data-path", image_folder, *QUICK)
        return cli(*start, "--output-dir", "out", *words)

    return run


def rows() -> list[dict[str, str]]:
    with open("out/sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_files_and_pictures(sweep: Any) -> None:
    outcome = sweep("--sparsities", 0.3, 0.6)
    assert outcome.code == 0, outcome.err
    names = [row["name"] for row in rows()]
    assert names == ["dense", "allocated_0.30", "allocated_0.60", "info_0.30", "info_0.60"]
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert all(name in outcome.out for name in names)
    content = json.loads(Path("out/sweep.json").read_text())
    assert [row["name"] for row in content["results"]] == names
    for row, line in zip(content["results"], rows(), strict=True):
        assert float(line["acc1"]) == row["acc1"]
        assert row["acc1_low"] <= row["acc1"] <= row["acc1_high"]
    assert Path("out/accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("out/accuracy.pdf").read_bytes()[:5] == b"%PDF-"


def test_points_are_added_and_an_interrupted_sweep_goes_on(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep("--sparsities", 0.3, "--methods", "info").code == 0
    made = os.stat("out/info_0.30/best.safetensors").st_mtime_ns
    work, calls = vitcod_cli.pipeline.stages.finetune_sparse, []

    def second_is_interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(vitcod_cli.pipeline.stages, "finetune_sparse", second_is_interrupted)
        assert sweep("--sparsities", 0.3, 0.6, "--resume").code == 130
    assert [row["name"] for row in rows()] == ["dense", "allocated_0.30", "info_0.30"]
    done = sweep("--sparsities", 0.3, 0.6, "--resume")
    assert done.code == 0, done.err
    assert len(rows()) == 5
    assert os.stat("out/info_0.30/best.safetensors").st_mtime_ns == made
    picture = Path("out/accuracy.png").read_bytes(), Path("out/accuracy.pdf").read_bytes()
    assert sweep("--sparsities", 0.3, 0.6, "--resume").code == 0
    assert (Path("out/accuracy.png").read_bytes(), Path("out/accuracy.pdf").read_bytes()) == picture


def test_what_cannot_be_had_is_left_out(sweep: Any) -> None:
    """17 tokens: a key of every row and the class token leave 83 % at most."""
    outcome = sweep("--sparsities", 0.5, 0.95, "--methods", "allocated")
    assert outcome.code == 0, outcome.err
    assert "allocated_0.95 is left out: --sparsity 0.95 can't be reached" in outcome.err
    assert [row["name"] for row in rows()] == ["dense", "allocated_0.50"]
    nothing = sweep("--sparsities", 0.95, "--methods", "allocated", "--resume")
    assert nothing.code == 1
    assert "No point of the sweep could be made" in nothing.err


def test_the_floor_is_that_of_allocated_masks(sweep: Any) -> None:
    assert sweep("--sparsities", 0.5, "--min-density", 0.45).code == 0
    allocated, info = (read_mask(f"out/{name}_0.50.safetensors") for name in ("allocated", "info"))
    assert allocated.info["min_density"] == 0.45
    assert head_sparsity(allocated.keep).max() <= 0.55
    assert "min_density" not in info.info


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sparsities", 0.5, 0.5), "--sparsities names the same one twice"),
        (("--sparsities", 1.5), "--sparsities must be above 0 and below 1"),
        (("--methods", "best"), "must be one of info, allocated"),
        (("--min-density", 0.1), "--min-density 0.1 keeps more than --sparsities 0.95 leaves"),
    ],
)
def test_what_is_refused(sweep: Any, words: tuple[object, ...], message: str) -> None:
    outcome = sweep(*words)
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert not Path("out").exists()
