"""A command that can't work leaves the finished run that it was to overwrite as it was, and says so at once."""

from __future__ import annotations

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli

import vitcod_cli
import vitcod_cli.calibration.saved
import vitcod_cli.steps.lowrank
import vitcod_cli.steps.setup
import vitcod_cli.steps.sparse
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.artifacts.run_lock import LOCK
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.training.run_state import StateFile

QUICK = ("--epochs", 1, "--batch-size", 10, "--no-repeated-aug", "--workers", 0)
CALIBRATE = ("--calibrate-steps", 1, "--calibrate-images", 6, "--calibrate-crops", 1, "--align-steps", 1)
Folder = dict[str, bytes]


def contents(folder: Path) -> Folder:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def models(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """``dense.safetensors``, ``sparse.safetensors``, and teachers that don't fit, beside the folder of the run."""
    model = build_model(tiny_config)
    vitcod_cli.save(model, tmp_path / "dense.safetensors")
    keep = torch.eye(17, dtype=torch.bool).expand(attention_shape(model)).clone()
    keep[..., 0] = True
    set_keep_mask(model, keep)
    vitcod_cli.save(model, tmp_path / "sparse.safetensors")
    for name, changes in {"classes": {"num_classes": 6}, "large": {"img_size": (40, 40)}}.items():
        vitcod_cli.save(build_model(tiny_config.changed(**changes)), tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def finished(models: Path, cli: Cli, image_folder: Path) -> Folder:
    """What a finished run has left in ``run``."""
    words = ("--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK, "--calibrate-steps", 0)
    outcome = cli("finetune-sparse", *words, "--output-dir", "run")
    assert outcome.code == 0, outcome.err
    Path("run/notes.txt").write_text("mine")
    return contents(Path("run"))


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: object, **__: object) -> None:
        raise AssertionError("too late: something was computed")

    for step in (vitcod_cli.steps.lowrank, vitcod_cli.steps.sparse):
        monkeypatch.setattr(step, "calibrate", compute)
        monkeypatch.setattr(step, "read_calibration_images", compute)
    monkeypatch.setattr(StateFile, "write", compute)


Disk = namedtuple("Disk", "total used free")
REFUSED = {
    "optimizer": (("--opt", "adamww"), "--opt adamww"),
    "augmentation": (("--aa", "foo-bar"), "--aa foo-bar"),
    "logger": (("--log-to", "wandb"), "--log-to wandb needs its package"),
    "accumulation": (("--accumulate-steps", 100), "--accumulate-steps 100 is more than the 2 batches"),
    "device": (("--device", "mps"), "--device mps"),
    "other device": (("--device", "meta"), "--device meta"),
    "calibration": (("--calibrate-images", 1), "--calibrate-images"),
    "seed": (("--seed", 10**23), "--seed"),
    "odd batch": (("--batch-size", 5), "--batch-size 5 must be even"),
    "split": (("--val-split", "nothing"), "nothing"),
    "shards": (("--dataset", "wds/x", "--train-split", "a-{0..9}.tar"), "--train-split"),
    "teacher's classes": (("--distill-from", "classes.safetensors"), "6 classes"),
    "teacher's size": (("--distill", "soft", "--teacher", "large.safetensors"), "--teacher large.safetensors"),
    "precision": (("--precision", "float15"), "--precision"),
    "weights": (("--init-from", "run/best.safetensors"), "--init-from run/best.safetensors is a file of the run"),
    "teacher": (("--distill-from", "run/last.safetensors"), "--distill-from run/last.safetensors is a file"),
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("step", ["sparse", "lowrank"])
@pytest.mark.usefixtures("nothing_is_computed")
def test_a_command_that_cannot_work_leaves_the_old_run(
    cli: Cli, models: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, words: Any, step: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    shutil.copytree(models, models / "run", ignore=lambda *_: ["run", "large.safetensors", "classes.safetensors"])
    for name in ("best", "last", "state"):
        shutil.copy("dense.safetensors" if step == "lowrank" else "sparse.safetensors", f"run/{name}.safetensors")
    before = contents(Path("run"))
    source = "dense.safetensors" if step == "lowrank" else "sparse.safetensors"
    calibrate = CALIBRATE if step == "lowrank" else CALIBRATE[:-2]
    data = ("--data-path", image_folder, *QUICK, *calibrate, "--output-dir", "run", "--overwrite")
    outcome = cli(f"finetune-{step}", "--init-from", source, *data, *words[0])
    if outcome.code == 2:  # usage
        assert words[1] in outcome.err
    else:
        assert words[1] in outcome.error
    assert contents(Path("run")) == before


def test_a_disk_without_room_for_the_state_is_found_at_once(
    cli: Cli,
    finished: Folder,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    nothing_is_computed: None,  # from here on
) -> None:
    words = ("finetune-sparse", "--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK)
    state = os.path.getsize("run/state.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(1, 1, state // 2))
    error = cli(*words, "--output-dir", "run", "--overwrite").error
    assert error.startswith("The disk of --output-dir run has 0.")
    assert "choose another folder" in error
    assert contents(Path("run")) == finished


def test_short_space_is_a_warning(
    cli: Cli, models: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("finetune-sparse", "--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(1, 1, 2**20))
    outcome = cli(*words, "--calibrate-steps", 0, "--output-dir", "new")
    assert outcome.code == 0, outcome.err
    assert "this run may take up to" in outcome.err
    size = os.path.getsize("new/state.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(1, 1, int(size * 1.02)))
    assert cli(*words, "--calibrate-steps", 0, "--output-dir", "just").code == 0, "the estimate is no guess"


@pytest.mark.parametrize("when", ["calibration", "first block", "first state"])
def test_a_command_that_fails_before_its_first_file_leaves_the_old_run(
    cli: Cli, finished: Folder, image_folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VitcodError("failed here")

    targets = {
        "calibration": (vitcod_cli.steps.sparse, "calibrate"),
        "first block": (vitcod_cli.calibration.saved, "write_safetensors"),
        "first state": (StateFile, "write"),
    }
    monkeypatch.setattr(*targets[when], fail)
    words = ("finetune-sparse", "--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK)
    calibrate = ("--calibrate-steps", 0) if when == "first state" else CALIBRATE[:-2]
    outcome = cli(*words, *calibrate, "--output-dir", "run", "--overwrite")
    assert outcome.error == "failed here"
    assert contents(Path("run")) == finished


def test_a_failed_first_try_and_then_resume_are_one_run(
    cli: Cli, models: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the try are not kept beside those of the run that follows."""

    def fail(*_: object, **__: object) -> None:
        raise VitcodError("failed here")

    words = ("finetune-sparse", "--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK)
    words = (*words, *CALIBRATE[:-2], "--output-dir")
    for method in ("write", "tensors"):
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, method, fail)
            cli(*words, "run", "--resume")
    assert cli(*words, "run", "--resume").code == 0
    assert cli(*words, "whole").code == 0
    run, whole = (Path(name, "metrics.jsonl").read_text().splitlines() for name in ("run", "whole"))
    assert [line[:30] for line in run] == [line[:30] for line in whole]


def test_a_finished_run_of_another_is_no_result_of_a_restart(
    cli: Cli, finished: Folder, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("finetune-sparse", "--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK)
    words = (*words, "--calibrate-steps", 0, "--output-dir", "run")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "--output-dir run is not empty" in cli(*words, "--seed", 5).error
    assert contents(Path("run")) == finished
    outcome = cli(*words, "--seed", 5, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert contents(Path("run"))["last.safetensors"] != finished["last.safetensors"]
    again = cli(*words, "--seed", 5, "--overwrite")
    assert "All epochs are trained already" in again.err, "this one is its own"


def test_a_config_in_the_folder_repeats_the_run_there(cli: Cli, finished: Folder) -> None:
    outcome = cli("finetune-sparse", "--config", "run/config.yaml", "--overwrite")
    assert outcome.code == 0, outcome.err
    again = contents(Path("run"))
    assert again.keys() == finished.keys()
    assert {name for name in again if again[name] != finished[name]} <= {"metrics.jsonl", "metrics.csv"}


def test_a_folder_in_use_is_refused_with_any_word(cli: Cli, finished: Folder, image_folder: Path) -> None:
    words = ("finetune-sparse", "--init-from", "sparse.safetensors", "--data-path", image_folder, *QUICK)
    with RunDirectory.open(vitcod_cli.OutputSettings(output_dir="run", resume=True), vitcod_cli_reporter()):
        for word in ("--resume", "--overwrite"):
            assert "in use by another run" in cli(*words, "--output-dir", "run", word).error
    assert contents(Path("run")) == finished
    assert not Path("run", LOCK).exists()


def vitcod_cli_reporter() -> Any:
    from vitcod_cli.reporting import QUIET

    return QUIET


def test_two_demonstrations_are_one_too_many(cli: Cli) -> None:
    from vitcod_cli.artifacts.output_folder import locked_folder

    with locked_folder(Path("vitcod-demo"), vitcod_cli_reporter()):
        assert "in use by another run" in cli("demo", "--overwrite").error
