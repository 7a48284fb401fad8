"""What calibration looks at: folders of other images, and in how many views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli
from PIL import Image
from safetensors.torch import load_file

from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32, "--num-classes", 5)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
RUN = ("--epochs", 0, "--batch-size", 10, "--no-repeated-aug", "--workers", 0, "--precision", "float32")
CALIBRATE = ("--align-steps", 2, "--calibrate-steps", 3, "--calibrate-batch-size", 3)


@pytest.fixture
def dense(cli: Cli, image_folder: Path) -> str:
    words = ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, *RUN)
    assert cli(*words, "--output-dir", "dense").code == 0
    return "dense/last.safetensors"


def lowrank(cli: Cli, dense: str, data: object, *words: object, output: str = "out") -> str:
    start = ("finetune-lowrank", "--init-from", dense, "--data-path", data, *RUN, *CALIBRATE)
    outcome = cli(*start, *words, "--output-dir", output)
    assert outcome.code == 0, outcome.err
    return outcome.err


def weights(output: str) -> dict[str, torch.Tensor]:
    return load_file(f"{output}/best.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_training_images_by_name_are_the_training_images(cli: Cli, dense: str, image_folder: Path) -> None:
    lowrank(cli, dense, image_folder)
    lowrank(cli, dense, image_folder, "--calibrate-path", image_folder, output="named")
    train = image_folder / "train"
    lowrank(cli, dense, image_folder, "--calibrate-path", train, train, output="twice")
    assert same(weights("out"), weights("named"))
    assert same(weights("out"), weights("twice"))  # a file counts once


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder of seven other images, at any depth."""
    for index in range(7):
        path = tmp_path / "more" / ("deep/er" if index % 2 else "") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (30 * index, 90, 200)).save(path)
    return tmp_path / "more"


def count_of(*folders: Path) -> int:
    return sum(path.is_file() for folder in folders for path in folder.rglob("*.*"))


def test_other_images_are_added(cli: Cli, dense: str, image_folder: Path, more: Path) -> None:
    lowrank(cli, dense, image_folder)
    said = lowrank(cli, dense, image_folder, "--calibrate-path", image_folder, more, output="both")
    assert f"Calibration uses {count_of(image_folder / 'train', more)} images" in said
    assert not same(weights("out"), weights("both"))


def test_two_processes_share_the_images(
    cli: Cli, run_cli: Callable[..., Any], dense: str, image_folder: Path, more: Path
) -> None:
    """Heads are fitted to moments over all of them, so that each image counts once, in one process or two."""
    words = ("finetune-lowrank", "--init-from", dense, "--data-path", image_folder, *RUN, *CALIBRATE)
    words += ("--calibrate-path", image_folder, more)
    for processes in (1, 2):
        count = ("--nproc-per-node", processes, "--output-dir", f"by{processes}")
        done = run_cli(*words, "--calibrate-steps", 0, *count)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"Calibration uses {count_of(image_folder / 'train', more)} images") == 1
    one, two = weights("by1"), weights("by2")
    assert all(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one)
    lowrank(cli, dense, image_folder, "--calibrate-steps", 0, output="without")
    assert not all(
        torch.allclose(one[name], tensor, rtol=1e-3, atol=1e-4) for name, tensor in weights("without").items()
    )
    calibrated = run_cli(*words, "--nproc-per-node", 2, "--output-dir", "calibrated")
    assert calibrated.returncode == 0, calibrated.stderr


def test_a_wrong_folder_is_found_at_once(cli: Cli, dense: str, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "nowhere", "is not a folder"), (tmp_path / "empty", "no images in")):
        words = ("finetune-lowrank", "--init-from", dense, "--data-path", image_folder, *RUN, *CALIBRATE)
        outcome = cli(*words, "--calibrate-path", folder, "--output-dir", "out")
        assert outcome.code == 1
        assert message in outcome.err
        assert not Path("out").exists()


@pytest.mark.parametrize(
    ("images", "crops"), [(1, 3), (437, 3), (512, 3), (513, 2), (768, 2), (769, 1), (2048, 1), (0, 3)]
)
def test_few_images_are_looked_at_more_often(images: int, crops: int) -> None:
    assert CalibrationSettings().crops(images) == crops
    assert CalibrationSettings(calibrate_crops=5).crops(images) == 5
    assert CalibrationSettings(calibrate_steps=0, calibrate_crops=5).crops(images) == 1
    assert LowRankCalibrationSettings().crops(images) == 1
