"""Each mistake of a user ends in one sentence that names what to do, and exit code 1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, the_error

import vitcod_cli.evaluation.accuracy
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import clear_keep_mask, set_keep_mask
from vitcod_cli.model.load import save_model

TRAIN = ("finetune-dense", "--epochs", 0)


def test_no_such_path(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    data = ("--data-path", image_folder)
    assert "--checkpoint nowhere.pth" in the_error(cli("eval", "--checkpoint", "nowhere.pth", *data))
    assert "nowhere" in the_error(cli("eval", "--checkpoint", tiny_checkpoint, "--data-path", "nowhere"))
    assert "--mask" in the_error(cli("eval", "--checkpoint", tiny_checkpoint, *data, "--mask", "nowhere.npy"))
    assert "--attn-map nowhere.npy" in the_error(cli("gen-mask", "--attn-map", "nowhere.npy"))


def test_a_map_that_is_a_pipe(run_cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Nobody writes to it: whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    done = run_cli("gen-mask", "--attn-map", "pipe", timeout=60)
    assert (done.returncode, "not a regular file" in done.stderr) == (1, True)


@pytest.mark.parametrize("command", ["eval", "finetune-lowrank", "finetune-sparse", "dump-attn", "gen-mask"])
def test_a_needed_option_is_named(cli: Cli, command: str) -> None:
    assert " is needed: " in the_error(cli(command))


def test_an_empty_class_folder_and_no_images(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    images = Path("images").resolve()
    shutil.copytree(image_folder, images)
    for picture in (images / "val" / "class3").iterdir():
        picture.unlink()
    evaluation = ("eval", "--checkpoint", tiny_checkpoint, "--data-path", images)
    assert "class3" in the_error(cli(*evaluation))
    shutil.rmtree(images / "val")
    assert "--data-path" in the_error(cli(*evaluation))
    (images / "val").mkdir()
    assert str(images) in the_error(cli(*evaluation))


def test_a_mask_of_another_model(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    np.save("mask.npy", np.zeros((2, 3, 5, 5), dtype=bool))
    error = the_error(
        cli("eval", "--checkpoint", tiny_checkpoint, "--data-path", image_folder, "--mask", "mask.npy")
    )
    assert "[2, 3, 5, 5]" in error
    assert "[2, 3, 17, 17]" in error


def test_a_map_that_is_none(cli: Cli) -> None:
    np.save("map.npy", np.zeros((2, 3, 4), dtype=np.float32))
    assert "map.npy" in the_error(cli("gen-mask", "--attn-map", "map.npy"))


def test_a_checkpoint_of_another_architecture(cli: Cli, tiny_config: ModelConfig, image_folder: Path) -> None:
    config = tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "depth": 3})
    torch.save({"model": build_model(config).state_dict()}, "deeper.pth")
    words = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
    kwargs = ("--model-kwargs", *(f"{key}={value}" for key, value in tiny_config.model_kwargs.items()))
    error = the_error(cli("eval", "--checkpoint", "deeper.pth", *words, *kwargs, "--data-path", image_folder))
    assert "3 blocks" in error
    assert "12 unexpected (blocks.2." in error
    Path("text.pth").write_text("not a checkpoint")
    assert "text.pth" in the_error(cli("eval", "--checkpoint", "text.pth", *words, "--data-path", image_folder))


def test_a_model_that_cannot_be_treated(cli: Cli, image_folder: Path) -> None:
    error = the_error(
        cli(*TRAIN, "--model", "swin_tiny_patch4_window7_224", "--data-path", image_folder, "--output-dir", "run")
    )
    assert "swin_tiny_patch4_window7_224 can't be treated" in error
    error = the_error(
        cli(*TRAIN, "--model", "deit_tinny_patch16_224", "--data-path", image_folder, "--output-dir", "run")
    )
    assert "did you mean deit_tiny_patch16_224" in error


def test_an_output_folder_that_is_not_empty(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    Path("run").mkdir()
    Path("run/precious.txt").write_text("mine")
    words = (*TRAIN, "--init-from", tiny_checkpoint, "--data-path", image_folder)
    error = the_error(cli(*words, "--output-dir", "run"))
    assert "--resume" in error
    assert "--overwrite" in error
    assert os.listdir("run") == ["precious.txt"]
    assert "--output-dir is needed" in the_error(cli(*words))


@pytest.mark.parametrize("cut", ["1.5", "-0.1", "nan"])
def test_info_cut_out_of_range(cli: Cli, cut: str) -> None:
    np.save("map.npy", np.full((1, 1, 4, 4), 0.25, dtype=np.float32))
    error = the_error(cli("gen-mask", "--attn-map", "map.npy", f"--info_cut={cut}"))
    assert error == f"--info-cut must be between 0 and 1, not {float(cut)}."


def test_a_class_count_that_does_not_fit(cli: Cli, tiny_config: ModelConfig, image_folder: Path) -> None:
    save_model("three.safetensors", build_model(tiny_config.changed(num_classes=3)), {})
    words = ("--data-path", image_folder)
    error = the_error(cli("eval", "--checkpoint", "three.safetensors", *words))
    assert "5 classes" in error
    assert "3 outputs" in error
    words = (*TRAIN, "--init-from", "three.safetensors", *words, "--num-classes", 3, "--output-dir", "run")
    assert "5 classes" in the_error(cli(*words))
    assert not Path("run").exists()


def test_a_mask_is_needed_to_fine_tune_a_dense_model(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    words = ("finetune-sparse", "--init-from", tiny_checkpoint, "--data-path", image_folder, "--output-dir", "run")
    assert "vitcod gen-mask" in the_error(cli(*words))


def test_ctrl_c(cli: Cli, tiny_checkpoint: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vitcod_cli.evaluation.accuracy, "evaluate", interrupted)
    outcome = cli("eval", "--checkpoint", tiny_checkpoint, "--data-path", image_folder)
    assert outcome.code == 130
    assert outcome.err.endswith("Interrupted.\n")
    assert "Traceback" not in outcome.err


def test_a_defect_keeps_its_traceback(
    cli: Cli, tiny_checkpoint: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(vitcod_cli.evaluation.accuracy, "evaluate", broken)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        cli("eval", "--checkpoint", tiny_checkpoint, "--data-path", image_folder)


@pytest.mark.parametrize(("value", "code", "err"), [("no way", 1, "no way\n"), (None, 0, ""), (3, 3, "")])
def test_a_library_that_exits(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, value: object, code: int, err: str
) -> None:
    """``sys.exit("text")`` means exit code 1, as Python itself has it."""

    def leave(*_: object, **__: object) -> None:
        sys.exit(value)  # type: ignore[arg-type]

    monkeypatch.setattr("vitcod_cli.artifacts.files.checked_path", leave)
    monkeypatch.setattr("vitcod_cli.steps.mask.checked_path", leave)
    assert cli("gen-mask", "--attn-map", "any") == (code, "", err)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vitcod_cli.steps.mask.checked_path", fail)
    assert "not enough memory: lower --batch-size" in cli("gen-mask", "--attn-map", "any").error


@pytest.mark.parametrize("words", [("--" + "x" * 3000,), ("y" * 3000, "z" * 3000)])
def test_wrong_usage_is_not_repeated_at_length(cli: Cli, words: tuple[str, ...]) -> None:
    outcome = cli("eval", *words)
    assert outcome.code == 2
    assert 0 < len(outcome.err) < 1500


def test_a_current_folder_that_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    result = subprocess.run(
        ["/bin/sh", "-c", 'rmdir "$PWD"; exec "$0" -m vitcod_cli gen-mask --attn-map x', sys.executable],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(vitcod_cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: The current folder can't be used")
    assert len(result.stderr.splitlines()) == 1


def test_an_error_of_all_processes_is_said_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("eval") == (1, "", ""), "rank 0 says it"
    assert cli("eval", "--no-such-option") == (2, "", "")


def test_a_reader_that_went_away() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "vitcod_cli", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(vitcod_cli.__file__).parents[1],
    )
    os.close(write)
    assert result.returncode == 1
    assert result.stderr == ""


@pytest.mark.parametrize("words", [["eval", "--" + "a" * 5000], ["a" * 5000], ["eval", "--json", "9" * 5000]])
def test_usage_errors_do_not_repeat_what_was_pasted(cli: Cli, words: list[str]) -> None:
    error = the_error(cli(*words))
    assert "longer than 4096 characters" in error
    assert len(error) < 300


@pytest.mark.parametrize(
    ("command", "more", "way_on"),
    [
        ("finetune-lowrank", ("--epochs", 1), "calibration, which needs none (--epochs 0)"),
        ("finetune-sparse", (), "--epochs 100 trains for a task"),
        ("compress", ("--epochs", 1), "or take the model with its head"),
        ("sweep", ("--epochs", 1), "(--epochs 0)"),
        ("compress", ("--max-drop", 2), "say how sparse it shall be (--sparsity)"),
    ],
)
def test_a_model_without_a_head_is_not_trained(
    cli: Cli, tiny_config: ModelConfig, command: str, more: tuple[object, ...], way_on: str
) -> None:
    """Found before images are looked for: there are none."""
    model = build_model(tiny_config.changed(num_classes=0))
    set_keep_mask(model, torch.ones(2, 3, 17, 17, dtype=torch.bool))
    if command != "finetune-sparse":
        clear_keep_mask(model)
    save_model("backbone.safetensors", model, {})
    words = ("--init-from", "backbone.safetensors", "--data-path", "nowhere", "--output-dir", "out")
    error = the_error(cli(command, *words, *more, "--workers", 0))
    assert "the model has no head (--num-classes 0)" in error
    assert way_on in error
    assert not Path("out").exists()


def test_a_head_that_is_to_be_trained_is_not_left_out(cli: Cli, image_folder: Path) -> None:
    words = ("--model", "deit_tiny_patch16_224", "--num-classes", 0, "--data-path", image_folder)
    error = the_error(cli("finetune-dense", *words, "--output-dir", "out"))
    assert "--num-classes 0 leaves no head to train; leave it out" in error
    assert not Path("out").exists()
