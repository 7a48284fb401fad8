"""``--log-to``: a run's metrics in TensorBoard or Weights & Biases, through their own libraries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vitcod_cli.errors import VitcodError


class Logger(Protocol):
    """Takes the metrics of each epoch."""

    def log(self, metrics: Mapping[str, float | int | None], epoch: int) -> None:
        """Log ``metrics`` of ``epoch`` (from 1)."""

    def close(self) -> None:
        """Send what is not sent yet."""


@contextmanager
def open_loggers(names: Sequence[str], path: Path, config: Mapping[str, Any]) -> Iterator[list[Logger]]:
    """The loggers of ``names`` (``tensorboard``, ``wandb``) for the run in folder ``path``.

    Raises:
        VitcodError: if a package isn't installed.
    """
    loggers: list[Logger] = []
    try:
        for name in names:
            loggers.append(TensorBoard(path) if name == "tensorboard" else WandB(path, config))
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, path: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_package("tensorboard") from error
        self._writer = SummaryWriter(str(path / "tensorboard"))

    def log(self, metrics: Mapping[str, float | int | None], epoch: int) -> None:
        """One scalar for each figure."""
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run of the project ``vitcod``; a resumed run goes on in it."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing_package("wandb") from error
        note = path / "wandb-id.txt"
        if not note.exists():
            note.write_text(wandb.util.generate_id(), encoding="utf-8")
        self._run = wandb.init(
            project="vitcod",
            name=path.name,
            dir=str(path),
            id=note.read_text(encoding="utf-8").strip(),
            resume="allow",
            config=dict(config),
        )

    def log(self, metrics: Mapping[str, float | int | None], epoch: int) -> None:
        """One step for each epoch."""
        self._run.log(dict(metrics), step=epoch)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def missing_package(name: str) -> VitcodError:
    """The error when the package of a logger is not installed."""
    return VitcodError(f"--log-to {name} needs its package; install it with: pip install 'vitcod[{name}]'.")
