"""The steps as functions: what they read, hold on to and write down."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Cli
from torch import nn

import vitcod_cli
import vitcod_cli.data.folder
import vitcod_cli.steps.lowrank
import vitcod_cli.steps.sparse
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.settings import ABOUT, options_of
from vitcod_cli.steps.dense import finetune_dense
from vitcod_cli.steps.lowrank import finetune_lowrank
from vitcod_cli.steps.options import DenseOptions, LowRankOptions, SparseOptions
from vitcod_cli.steps.sparse import finetune_sparse
from vitcod_cli.training.recipe import DenseRecipe, LowRankRecipe, SparseRecipe
from vitcod_cli.training.trainer import Training

QUICK: dict[str, Any] = {"calibrate_steps": 1, "calibrate_images": 6, "calibrate_crops": 1}


class TrainingBeginsError(Exception):
    """Where training would begin."""


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[nn.Module]]:
    """The models that calibration has for a teacher; training isn't begun."""
    seen: list[weakref.ref[nn.Module]] = []

    def run(*_: object) -> None:
        gc.collect()
        assert seen, "calibration comes first"
        assert [reference() for reference in seen] == [None] * len(seen), "a second model is still in memory"
        raise TrainingBeginsError

    for step in (vitcod_cli.steps.lowrank, vitcod_cli.steps.sparse):
        calibrate = step.calibrate

        def watched(
            student: nn.Module, teacher: nn.Module, *rest: Any, calibrate: Any = calibrate, **more: Any
        ) -> Any:
            seen.append(weakref.ref(teacher))
            return calibrate(student, teacher, *rest, **more)

        monkeypatch.setattr(step, "calibrate", watched)
    monkeypatch.setattr(Training, "run", run)
    return seen


@pytest.fixture
def data(image_folder: Path) -> DataSettings:
    return DataSettings(data_path=str(image_folder), workers=0)


def saved(tmp_path: Path, config: ModelConfig, masked: bool = False) -> str:
    model = build_model(config)
    if masked:
        import torch

        keep = torch.rand(attention_shape(model), generator=torch.Generator().manual_seed(0)) < 0.5
        keep |= torch.eye(keep.shape[-1], dtype=torch.bool)
        set_keep_mask(model, keep)
    vitcod_cli.save(model, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


@pytest.mark.parametrize("init", ["aligned", "trunc-normal"])
def test_the_dense_model_is_gone_when_low_rank_training_begins(
    tmp_path: Path, tiny_config: ModelConfig, data: DataSettings, teachers: list[Any], init: Any
) -> None:
    options = LowRankOptions(
        init_from=saved(tmp_path, tiny_config),
        lowrank=LowRankSettings(init=init, align_steps=1),
        calibration=LowRankCalibrationSettings(**QUICK),
        data=data,
        recipe=LowRankRecipe(epochs=1),
        output=OutputSettings(output_dir=str(tmp_path / "run")),
    )
    with pytest.raises(TrainingBeginsError):
        finetune_lowrank(options)
    assert len(teachers) == 1


def test_the_unmasked_model_is_gone_when_sparse_training_begins(
    tmp_path: Path, tiny_config: ModelConfig, data: DataSettings, teachers: list[Any]
) -> None:
    options = SparseOptions(
        init_from=saved(tmp_path, tiny_config, masked=True),
        calibration=CalibrationSettings(**QUICK),
        data=data,
        recipe=SparseRecipe(epochs=1),
        output=OutputSettings(output_dir=str(tmp_path / "run")),
    )
    with pytest.raises(TrainingBeginsError):
        finetune_sparse(options)
    assert len(teachers) == 1


def test_the_training_folder_is_walked_once(
    tmp_path: Path, image_folder: Path, data: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []
    walk = vitcod_cli.data.folder.walk

    def counted(root: Path) -> Any:
        walked.append(str(root))
        return walk(root)

    monkeypatch.setattr(vitcod_cli.data.folder, "walk", counted)
    kwargs = ["patch_size=8", "embed_dim=24", "depth=1", "num_heads=3"]
    options = DenseOptions(
        model=ModelSettings(model="deit_tiny_patch16_224", img_size=32, model_kwargs=kwargs),
        data=data,
        recipe=DenseRecipe(epochs=0, batch_size=4),
        output=OutputSettings(output_dir=str(tmp_path / "run")),
    )
    assert finetune_dense(options).best.images == 13
    assert walked == [str(image_folder / "train"), str(image_folder / "val")]
    config = vitcod_cli.load(tmp_path / "run" / "last.safetensors").vitcod_config
    assert config.num_classes == 5, "the data set decides"


def test_config_yaml_is_all_that_the_command_line_resolved_to(
    cli: Cli, tmp_path: Path, tiny_config: ModelConfig, image_folder: Path
) -> None:
    """And it repeats the run: the number of processes comes from it, too."""
    checkpoint = saved(tmp_path, tiny_config, masked=True)
    words = ("finetune-sparse", "--init-from", checkpoint, "--data-path", image_folder, "--workers", 0)
    quick = ("--epochs", 0, "--calibrate-steps", 0, "--batch-size", 4, "--nproc-per-node", 2, "--json")
    outcome = cli(*words, *quick, "--output-dir", "run")
    assert outcome.code == 0, outcome.err
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert set(config) == {*options_of(SparseOptions), ABOUT} - {"resume", "overwrite"}
    assert config["nproc_per_node"] == 2
    assert config[ABOUT]["processes"] == 2
    assert config["json"] is True
    again = cli("finetune-sparse", "--config", "run/config.yaml", "--output-dir", "again")
    assert again.code == 0, again.err
    repeated = yaml.safe_load(Path("again/config.yaml").read_text())
    assert {**repeated, "output_dir": "run"} == config


def test_a_low_rank_step_that_compresses_nothing() -> None:
    with pytest.raises(VitcodError, match=r"--svd-type none leaves nothing to do: .*finetune-sparse"):
        LowRankOptions(
            init_from="x", output=OutputSettings(output_dir="y"), lowrank=LowRankSettings(svd_type="none")
        )
