"""``--config-shared``: model, data and runtime of one step in the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import Cli

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")


@pytest.fixture
def run(cli: Cli, image_folder: Path) -> Path:
    words = ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, "--workers", 0, "--seed", 7)
    outcome = cli(
        *words, "--epochs", 0, "--lr", 0.01, "--batch-size", 10, "--no-repeated-aug", "--output-dir", "run"
    )
    assert outcome.code == 0, outcome.err
    return Path("run/config.yaml")


def test_the_next_step_takes_what_it_shares(cli: Cli, run: Path, image_folder: Path) -> None:
    refused = cli("eval", "--checkpoint", "run/best.safetensors", "--config", run)
    assert refused.code == 1
    assert "is not an option of vitcod eval" in refused.err
    assert "--config-shared takes what fits" in refused.err
    outcome = cli("eval", "--checkpoint", "run/best.safetensors", "--config-shared", run, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["data"]["path"] == str(image_folder)
    told = next(line for line in outcome.err.splitlines() if line.startswith("Taken from"))
    assert all(flag in told for flag in ("--data-path", "--model", "--img-size", "--model-kwargs", "--seed"))
    assert "--lr" not in told


def test_what_else_is_given_goes_first(cli: Cli, run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"seed": 3, "batch_size": 5}))
    for order in (("--config", own, "--config-shared", run), ("--config-shared", run, "--config", own)):
        words = ("dump-attn", "--checkpoint", "run/best.safetensors", *order, "--max-images", 3, "--overwrite")
        assert cli(*words).code == 0
    elsewhere = cli(
        "eval", "--checkpoint", "run/best.safetensors", "--config-shared", run, "--data-path", "nowhere"
    )
    assert elsewhere.code == 1
    assert "--data-path nowhere does not exist" in elsewhere.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "--config-shared c.yaml"),
        ("seed: many", "seed must be a whole number"),
        ("seed: 1\nseed: 2", "twice"),
    ],
)
def test_files_that_make_no_sense(cli: Cli, content: str, message: str) -> None:
    Path("c.yaml").write_text(content)
    outcome = cli("eval", "--checkpoint", "x", "--config-shared", "c.yaml")
    assert outcome.code == 1
    assert message in outcome.err
    assert "--config-shared" in cli("eval", "--checkpoint", "x", "--config-shared", "nowhere.yaml").err
