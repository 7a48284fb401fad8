"""``--log-to``: with stand-ins for TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch.utils
from tiny import train

from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.training import loggers
from vitcod_cli.training.run_state import StateFile


class Libraries:
    """Both libraries; ``trouble`` is the call that fails."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, list[str], Any]] = []
        self.epochs: list[int] = []
        self.scalars: list[tuple[str, float, int]] = []
        self.first_steps: list[int] = []
        self.trouble = ""

    def _try(self, what: str) -> None:
        if what == self.trouble:
            raise OSError(28, "No space left on device")

    def SummaryWriter(self, folder: str, purge_step: int) -> Any:  # noqa: N802
        self._open("tensorboard", Path(folder).parent, None)
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "events.out.tfevents.1").write_text("events")
        self.first_steps.append(purge_step)
        return SimpleNamespace(add_scalar=self._scalar, flush=lambda: None, close=lambda: self._try("close"))

    def init(self, *, dir: str, id: str, **_: Any) -> Any:
        self._open("wandb", Path(dir), id)
        return SimpleNamespace(log=self._log, finish=lambda: self._try("close"))

    def _open(self, name: str, folder: Path, identity: Any) -> None:
        self._try("open")
        self.opened.append((name, sorted(path.name for path in folder.iterdir()), identity))

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._try("log")
        self.epochs += [int(value)] * (name == "epoch")
        self.scalars.append((name, value, step))

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        self._try("log")
        self.epochs.append(step)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    libraries = Libraries()
    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    numbers = iter(range(10))
    board.SummaryWriter = libraries.SummaryWriter  # type: ignore[attr-defined]
    wandb.init = libraries.init  # type: ignore[attr-defined]
    wandb.util = SimpleNamespace(generate_id=lambda: f"run{next(numbers)}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(torch.utils, "tensorboard", board, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return libraries


def overwrite(folder: Path, **options: Any) -> None:
    """What ``--overwrite`` does, with the tiny training."""
    open_run = RunDirectory.open

    def opened(settings: OutputSettings, *rest: Any) -> RunDirectory:
        return open_run(settings.changed(overwrite=True), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "open", opened)
        train(folder, **options)


def test_both_get_every_epoch(tmp_path: Path, libraries: Libraries) -> None:
    train(tmp_path / "run", log_to="tensorboard,wandb")
    assert [name for name, _, _ in libraries.opened] == ["tensorboard", "wandb"]
    assert libraries.epochs == [1, 1, 2, 2]


def test_tensorboard_gets_steps(tmp_path: Path, libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole training, over epochs (of 5 steps) and a resumed run."""
    monkeypatch.setattr(loggers, "STEPS", 2)
    train(tmp_path / "run", log_to="tensorboard,wandb")
    train(tmp_path / "run", resume=True, log_to="tensorboard,wandb", epochs=3)
    for name in ("train_loss", "lr", "images_per_second"):
        assert [step for tag, _, step in libraries.scalars if tag == f"step/{name}"] == list(range(0, 15, 2))
    assert [(value, step) for tag, value, step in libraries.scalars if tag == "epoch"] == [
        (1, 5),
        (2, 10),
        (3, 15),
    ]
    assert [step for tag, _, step in libraries.scalars if tag == "acc1"] == [5, 10, 15]
    assert libraries.first_steps == [0, 11]


def test_speed_of_steps_leaves_evaluations_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "STEPS", 2)
    now = 0.0
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now)
    seen: list[Mapping[str, float]] = []
    log = loggers.Loggers(SilentReporter())
    log._open["x"] = SimpleNamespace(log_step=lambda metrics, step: seen.append(metrics))  # type: ignore[assignment]
    for step, second in ((1, 1.0), (2, 2.0), (3, 3.0)):
        now = second
        log.log_step({"train_loss": math.nan, "lr": 0.1}, step, images=8)
    now = 100.0
    log.restart_clock()
    now = 104.0
    log.log_step({"train_loss": 1.0, "lr": 0.1}, 4, images=8)
    assert seen == [
        {"lr": 0.1, "images_per_second": 8.0},
        {"train_loss": 1.0, "lr": 0.1, "images_per_second": 2.0},
    ]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: (step, value) of every scalar."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_event_files_of_a_run_that_was_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back by TensorBoard's own reader: no point is missing, none there twice."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(loggers, "STEPS", 2)
    train(tmp_path / "whole", log_to="tensorboard", epochs=4)
    folder, log = tmp_path / "cut", RunDirectory.log

    def killed(run: RunDirectory, **metrics: Any) -> None:
        log(run, **metrics)
        if metrics.get("epoch") == 2:
            raise KeyboardInterrupt

    # Killed behind the steps of epoch 2 and in front of its figures; then with new steps behind a state.
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            train(folder, log_to="tensorboard", epochs=4)
    with pytest.raises(VitcodError, match="not finite"):
        train(folder, log_to="tensorboard", epochs=4, resume=True, mishap={"kind": "inf", "step": 4})
    train(folder, log_to="tensorboard", epochs=4, resume=True)
    whole, cut = events(tmp_path / "whole"), events(folder)
    assert cut.keys() == whole.keys()
    for tag in whole:
        assert [step for step, _ in cut[tag]] == [step for step, _ in whole[tag]], tag
    for tag in ("epoch", "acc1", "train_loss", "step/train_loss", "step/lr"):
        assert cut[tag] == whole[tag]
    assert [step for step, _ in cut["epoch"]] == [5, 10, 15, 20]
    assert [step for step, _ in cut["step/lr"]] == list(range(0, 20, 2))


def test_epochs_as_a_table(tmp_path: Path) -> None:
    """A row for each, whatever happened in between; those that are trained again have one."""
    folder = tmp_path / "run"
    train(folder)
    assert table(folder) == epochs(folder)
    train(folder, resume=True, epochs=4)
    assert [row["epoch"] for row in table(folder)] == ["1", "2", "3", "4"]
    assert table(folder) == epochs(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 5, "acc')  # killed here
    train(folder, resume=True, epochs=5)
    assert table(folder) == epochs(folder)
    assert len(table(folder)) == 5
    overwrite(folder)
    assert [row["epoch"] for row in table(folder)] == ["1", "2"]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def epochs(folder: Path) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "epoch" in line]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: "" if row.get(name) is None else str(row[name]) for name in names} for row in rows]


def test_loggers_are_opened_behind_the_first_state(tmp_path: Path, libraries: Libraries) -> None:
    """Before it, an earlier run is still there, and must not be logged on with."""
    train(tmp_path / "run", log_to="tensorboard,wandb")
    overwrite(tmp_path / "run", log_to="tensorboard,wandb")
    train(tmp_path / "run", resume=True, log_to="wandb", epochs=3)
    assert [identity for name, _, identity in libraries.opened if name == "wandb"] == ["run0", "run1", "run1"]
    for _, files, _ in libraries.opened[:4]:
        assert "state.safetensors" in files
        assert "last.safetensors" not in files
    assert "tensorboard" not in libraries.opened[2][1]


def test_a_run_that_dies_before_its_first_state_opens_none(
    tmp_path: Path, libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "run", log_to="wandb")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def fail(*_: object) -> None:
        raise VitcodError("failed")

    monkeypatch.setattr(StateFile, "write", fail)
    with pytest.raises(VitcodError, match="failed"):
        overwrite(tmp_path / "run", log_to="wandb,tensorboard")
    assert len(libraries.opened) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("trouble", ["log", "close"])
def test_a_logger_that_fails_does_not_stop_the_run(tmp_path: Path, libraries: Libraries, trouble: str) -> None:
    libraries.trouble = trouble
    reporter = SilentReporter()
    result, _ = train(tmp_path / "run", log_to="tensorboard,wandb", reporter=reporter)
    assert result.epochs == 2
    warnings = [warning for warning in reporter.warnings if warning.startswith("--log-to")]
    assert len(warnings) == 2
    assert "No space left on device); the run goes on without it" in warnings[0]


def test_a_logger_that_cannot_start_says_how_to_go_on(tmp_path: Path, libraries: Libraries) -> None:
    libraries.trouble = "open"
    with pytest.raises(VitcodError, match=r"--log-to wandb can't be started .* go on with --resume"):
        train(tmp_path / "run", log_to="wandb")
    train(tmp_path / "run", resume=True)
