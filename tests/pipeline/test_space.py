"""The disk is looked at before anything is made: what all stages leave, against what is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Cli, Outcome

from vitcod_cli import artifacts
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.pipeline.options import PipelineOptions
from vitcod_cli.pipeline.space import Outputs
from vitcod_cli.reporting import QUIET

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=4", "embed_dim=96", "depth=3", "num_heads=3")
QUICK = ("--calibrate-steps", 1, "--calibrate-images", 6, "--calibrate-batch-size", 3, "--workers", 0)
DENSE = "dense/last.safetensors"
SMALL = 0.01
"""The share of what isn't counted: auto-encoders and headers."""

Run = Callable[..., Outcome]


@pytest.fixture
def run(cli: Cli, image_folder: Path) -> Run:
    words = ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, "--batch-size", 10, "--workers", 0)
    assert cli(*words, "--epochs", 0, "--no-repeated-aug", "--output-dir", "dense").code == 0

    def run(command: str, *words: object) -> Outcome:
        start = (command, "--init-from", DENSE, "--data-path", image_folder, *QUICK, "--output-dir", "out")
        return cli(*start, *(("--align-steps", 1) if command == "compress" else ()), *words)

    return run


def left() -> int:
    """Bytes of the checkpoints, maps and masks in the folder."""
    return sum(path.stat().st_size for path in Path("out").rglob("*.safetensors"))


def expected(outputs: Outputs, **options: object) -> int:
    model = load_model(ModelSettings(), DENSE, flag="--init-from", reporter=QUIET)
    output = OutputSettings(output_dir="out")
    return outputs.files(model, PipelineOptions(init_from=DENSE, output=output, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "options", "outputs"),
    [
        (("--sparsity", 0.8), {}, Outputs([("allocated", 0.8)], adds_heads=True, delivers=True)),
        (
            ("--sparsity", 0.8, "--method", "info", "--svd-type", "none", "--batch-size", 5),
            {},
            Outputs([("info", 0.8)], importance=False, delivers=True),
        ),
        (
            ("--sparsity", 0.5, "--epochs", 1, "--batch-size", 4),
            {"epochs": 1},
            Outputs([("allocated", 0.5)], adds_heads=True, delivers=True),
        ),
    ],
)
def test_what_compress_leaves(
    run: Run, words: tuple[object, ...], options: dict[str, int], outputs: Outputs
) -> None:
    outcome = run("compress", *words)
    assert outcome.code == 0, outcome.err
    assert left() == pytest.approx(expected(outputs, **options), rel=SMALL)


def test_what_a_sweep_leaves(run: Run) -> None:
    outcome = run("sweep", "--sparsities", 0.5, 0.8, "--via", 0.3, 0.6)
    assert outcome.code == 0, outcome.err
    points = Outputs([(method, sparsity) for method in ("info", "allocated") for sparsity in (0.5, 0.8)])
    assert left() == pytest.approx(expected(points, via=[0.3, 0.6]), rel=SMALL)


@pytest.mark.parametrize("command", ["compress", "sweep"])
def test_too_little_room(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts.files, "free_space", lambda folder: 3_000_000)
    outcome = run(command)
    assert outcome.code == 1
    assert "--output-dir: the disk of out has 0.0 GB free, and what is left to be written takes" in outcome.err
    assert not Path("out").exists()


def test_what_is_there_already_takes_no_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("compress", "--sparsity", 0.8).code == 0
    monkeypatch.setattr(artifacts.files, "free_space", lambda folder: 1_000_000)
    again = run("compress", "--sparsity", 0.8, "--resume")
    assert again.code == 0, again.err
