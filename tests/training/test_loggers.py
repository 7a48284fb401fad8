"""``--log-to``: with stand-ins for TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
import json
import sys
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
        self.steps: list[tuple[str, int]] = []
        self.trouble = ""

    def _try(self, what: str) -> None:
        if what == self.trouble:
            raise OSError(28, "No space left on device")

    def SummaryWriter(self, folder: str) -> Any:  # noqa: N802
        self._open("tensorboard", Path(folder).parent, None)
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "events.out.tfevents.1").write_text("events")
        return SimpleNamespace(add_scalar=self._scalar, flush=lambda: None, close=lambda: self._try("close"))

    def init(self, *, dir: str, id: str, **_: Any) -> Any:
        self._open("wandb", Path(dir), id)
        return SimpleNamespace(log=self._log, finish=lambda: self._try("close"))

    def _open(self, name: str, folder: Path, identity: Any) -> None:
        self._try("open")
        self.opened.append((name, sorted(path.name for path in folder.iterdir()), identity))

    def _scalar(self, name: str, value: float, epoch: int) -> None:
        self._try("log")
        self.epochs += [epoch] * (name == "epoch")
        self.steps += [(name, epoch)] * name.startswith("step/")

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
    """Of the whole training, over epochs and a resumed run."""
    monkeypatch.setattr(loggers, "STEPS", 2)
    train(tmp_path / "run", log_to="tensorboard,wandb")
    seen = len(libraries.steps)
    train(tmp_path / "run", resume=True, log_to="tensorboard,wandb", epochs=3)
    assert 0 < seen < len(libraries.steps)
    numbers = [step for name, step in libraries.steps if name == "step/train_loss"]
    assert numbers == list(range(2, 2 * len(numbers) + 1, 2))
    assert [step for name, step in libraries.steps if name == "step/lr"] == numbers


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
