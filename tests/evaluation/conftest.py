"""Small models, and images to evaluate them on."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli
from safetensors.torch import load_file, save_file

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")


@pytest.fixture
def data(image_folder: Path) -> tuple[object, ...]:
    return ("--data-path", image_folder, "--workers", 0)


@pytest.fixture
def models(cli: Cli, data: tuple[object, ...]) -> list[str]:
    """Two models of other weights."""
    for seed in (0, 1):
        words = ("finetune-dense", *MODEL, *KWARGS, *data, "--seed", seed, "--batch-size", 10)
        assert cli(*words, "--epochs", 0, "--no-repeated-aug", "--output-dir", f"run{seed}").code == 0
    return ["run0/last.safetensors", "run1/last.safetensors"]


@pytest.fixture
def masks(cli: Cli, data: tuple[object, ...], models: list[str]) -> list[str]:
    assert cli("dump-attn", "--checkpoint", models[0], *data).code == 0
    for sparsity in (0.3, 0.7):
        words = ("gen-mask", "--attn-map", "attn.safetensors", "--sparsity", sparsity)
        assert cli(*words, "--output", f"mask{sparsity}.safetensors").code == 0
    return ["mask0.3.safetensors", "mask0.7.safetensors"]


@pytest.fixture
def plain(models: list[str]) -> str:
    """The weights of the first model in a file that doesn't say whose they are."""
    save_file(load_file(models[0]), "plain.safetensors")
    return "plain.safetensors"
