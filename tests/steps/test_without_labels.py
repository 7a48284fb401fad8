"""The steps on images without labels: agreement in the place of accuracy, and no training without a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Cli

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32, "--num-classes", 5)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
QUICK = ("--batch-size", 10, "--no-repeated-aug", "--workers", 0)
CALIBRATE = ("--calibrate-steps", 2, "--calibrate-images", 6, "--calibrate-batch-size", 3)


@pytest.fixture
def images(image_folder: Path) -> tuple[object, ...]:
    return ("--data-path", image_folder, "--dataset", "images")


@pytest.fixture
def dense(cli: Cli, image_folder: Path) -> str:
    words = ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, *QUICK, "--epochs", 0)
    assert cli(*words, "--output-dir", "dense").code == 0
    return "dense/last.safetensors"


def test_all_steps(cli: Cli, images: tuple[object, ...], dense: str) -> None:
    lowrank = cli(
        *("finetune-lowrank", "--init-from", dense, *images, *QUICK, "--align-steps", 2, *CALIBRATE),
        *("--epochs", 0, "--output-dir", "lowrank", "--json"),
    )
    assert lowrank.code == 0, lowrank.err
    assert "Acc@1 is agreement with" in lowrank.err
    assert json.loads(lowrank.out)["images"] == 13
    assert cli("dump-attn", "--checkpoint", "lowrank/last.safetensors", *images).code == 0
    assert cli("gen-mask", "--attn-map", "attn.safetensors", "--sparsity", 0.5, "--output", "mask").code == 0
    # One epoch, with mixup, learning from the dense model.
    words = ("finetune-sparse", "--init-from", "lowrank/last.safetensors", "--mask", "mask", *images, *QUICK)
    sparse = cli(*words, *CALIBRATE, "--epochs", 1, "--distill-from", dense, "--output-dir", "sparse", "--json")
    assert sparse.code == 0, sparse.err
    assert 0 <= json.loads(sparse.out)["acc1"] <= 100


def test_a_model_agrees_with_itself(cli: Cli, images: tuple[object, ...], dense: str) -> None:
    """A mask that prunes nothing leaves the model as it was."""
    assert cli("dump-attn", "--checkpoint", dense, *images).code == 0
    assert cli("gen-mask", "--attn-map", "attn.safetensors", "--info-cut", 1, "--output", "mask").code == 0
    words = ("finetune-sparse", "--init-from", dense, "--mask", "mask", *images, *QUICK, "--calibrate-steps", 0)
    assert json.loads(cli(*words, "--epochs", 0, "--output-dir", "same", "--json").out)["acc1"] == 100


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("finetune-lowrank", "--init-from", "{dense}", "--epochs", 1, "--output-dir", "x"),
            "no labels to train on",
        ),
        (("finetune-dense", *MODEL, *KWARGS, "--epochs", 0, "--output-dir", "x"), "no labels to evaluate by"),
        (("eval", "--checkpoint", "{dense}"), "no labels to evaluate by"),
    ],
)
def test_labels_that_are_needed(
    cli: Cli, images: tuple[object, ...], dense: str, command: tuple[object, ...], message: str
) -> None:
    outcome = cli(*(str(word).format(dense=dense) for word in command), *images)
    assert outcome.code == 1
    assert message in outcome.err
    assert not Path("x").exists()
