"""The run folder: when it may be entered, and what is written to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vitcod_cli.artifacts.run_directory import OutputSettings, RunDirectory
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter


def settings(path: Path, **values: bool) -> OutputSettings:
    return OutputSettings(output_dir=str(path), **values)


def open_run(settings: OutputSettings) -> RunDirectory:
    return RunDirectory.open(settings, SilentReporter())


def test_a_new_or_empty_folder_is_made_and_entered(tmp_path: Path) -> None:
    run = open_run(settings(tmp_path / "a" / "b"))
    assert run.path.is_dir()
    assert {run.last.name, run.best.name, run.state.name} == {
        "last.safetensors",
        "best.safetensors",
        "state.safetensors",
    }
    open_run(settings(tmp_path / "a" / "b"))


def test_a_filled_folder_needs_a_word(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_text("state")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(VitcodError, match="not empty") as error:
        open_run(settings(tmp_path))
    assert "--resume" in str(error.value)
    assert "--overwrite" in str(error.value)
    open_run(settings(tmp_path, resume=True))
    assert (tmp_path / "state.safetensors").exists()
    run = open_run(settings(tmp_path, overwrite=True))
    assert (tmp_path / "state.safetensors").exists(), "nothing new is there yet"
    run.begin()
    assert not (tmp_path / "state.safetensors").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(VitcodError, match="exclude each other"):
        open_run(settings(tmp_path, overwrite=True, resume=True))


def test_other_processes_do_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come when the main process has written already."""
    (tmp_path / "config.yaml").touch()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert open_run(settings(tmp_path)).path == tmp_path


def test_places_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(VitcodError, match="is a file"):
            open_run(settings(tmp_path / place))
    with pytest.raises(VitcodError, match="--output-dir is needed"):
        OutputSettings.from_flat({})


def test_config_and_figures(tmp_path: Path) -> None:
    run = open_run(settings(tmp_path))
    config = {"zebra": 1, "apple": {"lr": 1e-5, "name": None}, "list": ["a=b"]}
    run.write_config(config)
    run.log(epoch=0, loss=1.5)
    assert not list(tmp_path.iterdir()), "held back"
    run.begin()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "lo')  # killed here
    run.log(epoch=1, loss=1.25)
    back = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert back == config
    assert list(back) == list(config)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1.25}]


def test_metrics_of_epochs_that_are_trained_again_go(tmp_path: Path) -> None:
    run, path = RunDirectory(tmp_path), tmp_path / "metrics.jsonl"
    lines = ['{"stage": "calibrate"}', '{"epoch": 1, "loss": 1}', '{"epoch": 2}', '{"epoch": 3}', '{"epo']
    path.write_text("\n".join(lines))
    run.keep_epochs(2)
    assert path.read_text().splitlines() == lines[:3]
    path.unlink()
    run.keep_epochs(2)
    assert not path.exists()


def test_a_run_resumes_where_a_state_is_and_else_begins_its_metrics_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = '{"stage": "calibrate"}\n'
    (tmp_path / "metrics.jsonl").write_text(log)
    (tmp_path / "state.safetensors").touch()
    assert open_run(settings(tmp_path, resume=True)).resumes
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert open_run(settings(tmp_path)).resumes
    assert open_run(settings(tmp_path, overwrite=True)).resumes
    assert (tmp_path / "metrics.jsonl").read_text() == log
    (tmp_path / "state.safetensors").unlink()
    run = open_run(settings(tmp_path))
    assert not run.resumes
    run.begin()
    assert not (tmp_path / "metrics.jsonl").exists()
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    (tmp_path / "metrics.jsonl").write_text(log)
    run = open_run(settings(tmp_path, resume=True))
    assert not run.resumes
    run.begin()
    assert not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "state.safetensors").touch()
    assert not open_run(settings(tmp_path, overwrite=True)).resumes
