"""The command line in this process: quick, for all that isn't about processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Cli, Outcome

from vitcod_cli.__main__ import main
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.load import save_model


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """``cli("eval", "--json")``: exit code, stdout and stderr of the command, run in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """A dense model with random weights."""
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_model(path, build_model(tiny_config), {})
    return path
