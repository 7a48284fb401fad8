"""``--log-to``: with stand-ins for TensorBoard and Weights & Biases."""

from __future__ import annotations

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
from vitcod_cli.training.run_state import StateFile


class Libraries:
    """Both libraries; ``trouble`` is the call that fails."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, list[str], Any]] = []
        self.epochs: list[int] = []
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
