"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.load import save_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """A dense model with random weights."""
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save_model(path, build_model(tiny_config), {})
    return path
