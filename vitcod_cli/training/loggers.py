"""``--log-to``: a run's metrics in TensorBoard or Weights & Biases, through their own libraries."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vitcod_cli.artifacts.files import atomic_path, first_line
from vitcod_cli.artifacts.run_files import TENSORBOARD, WANDB_ID, wandb_id
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

STEPS = 50
"""Every so many steps are logged, where a library takes steps."""


class Logger(Protocol):
    """Takes the metrics of each epoch."""

    def log(self, metrics: Mapping[str, float | int | None], epoch: int, steps: int) -> None:
        """Log ``metrics`` of ``epoch`` (from 1), which ended after ``steps`` of the whole training."""

    def log_step(self, metrics: Mapping[str, float], step: int) -> None:
        """Log ``metrics`` of a ``step`` of the whole training (from 0)."""

    def close(self) -> None:
        """Send what is not sent yet."""


class Loggers:
    """The loggers of a run. One that fails is left out: the training, and ``metrics.jsonl``, go on without it."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._open: dict[str, Logger] = {}
        self.restart_clock()

    def open(self, names: Sequence[str], path: Path, config: Mapping[str, Any], first_step: int) -> None:
        """Open those of ``names`` for the run in folder ``path``.

        Args:
            first_step: what an earlier process has logged of it and behind it is logged again.

        Raises:
            VitcodError: if one can't be opened.
        """
        for name in names:
            try:
                self._open[name] = TensorBoard(path, first_step) if name == "tensorboard" else WandB(path, config)
            except VitcodError:
                raise
            except Exception as error:  # each library has its own
                raise VitcodError(
                    f"--log-to {name} can't be started ({first_line(error)}); mend that or leave it out, and "
                    "go on with --resume."
                ) from error

    def log(self, metrics: Mapping[str, float | int | None], epoch: int, steps: int) -> None:
        """Log ``metrics`` of ``epoch`` (from 1), which ended after ``steps`` of the whole training."""
        for name, logger in list(self._open.items()):
            with self._leaving_out(name):
                logger.log(metrics, epoch, steps)

    def restart_clock(self) -> None:
        """Measure the speed of steps from here on: an evaluation isn't one."""
        self._since, self._images = time.monotonic(), 0.0

    def log_step(self, metrics: Mapping[str, float], step: int, images: float) -> None:
        """Log ``metrics`` of a ``step`` of the whole training (from 0), if it is one of those that are logged.

        The speed since the last one that was is added.

        Args:
            images: of this step; their number is what speed is made of, so every step is told of.
        """
        self._images += images
        if step % STEPS:
            return
        speed = self._images / max(time.monotonic() - self._since, 1e-9)  # a coarse clock may stand still
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name, logger in list(self._open.items()):
            with self._leaving_out(name):
                logger.log_step({**finite, "images_per_second": speed}, step)
        self.restart_clock()

    def close(self) -> None:
        """Send what is not sent yet."""
        for name, logger in list(self._open.items()):
            with self._leaving_out(name):
                logger.close()

    @contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk, a network that is away
            self._open.pop(name)
            self._reporter.warn(f"--log-to {name} failed ({first_line(error)}); the run goes on without it.")


@contextmanager
def open_loggers(
    names: Sequence[str], path: Path, config: Mapping[str, Any], reporter: Reporter, first_step: int
) -> Iterator[Loggers]:
    """The loggers of ``names`` (``tensorboard``, ``wandb``) for the run in ``path``; see :meth:`Loggers.open`.

    Raises:
        VitcodError: if a package isn't installed, or its logger can't be started.
    """
    loggers = Loggers(reporter)
    try:
        loggers.open(names, path, config, first_step)
        yield loggers
    finally:
        loggers.close()


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run; the axis is steps of the whole training.

    A resumed run has a file of its own, and those of the processes before it stay: TensorBoard hides in them
    what is behind ``first_step``, for that is logged again.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_package("tensorboard") from error
        self._writer = SummaryWriter(str(path / TENSORBOARD), purge_step=first_step)

    def log_step(self, metrics: Mapping[str, float], step: int) -> None:
        """One scalar for each figure, apart from those of epochs, which are means."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def log(self, metrics: Mapping[str, float | int | None], epoch: int, steps: int) -> None:
        """One scalar for each figure, where the epoch ended."""
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, steps)
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
        identity = wandb_id(path)
        if identity is None:
            identity = str(wandb.util.generate_id())
            with atomic_path(path / WANDB_ID) as temporary:
                temporary.write_text(identity, encoding="ascii")
        self._run = wandb.init(
            project="vitcod",
            name=path.name,
            dir=str(path),
            id=identity,
            resume="allow",
            config=dict(config),
        )

    def log_step(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing: a run there has one axis, and it is that of epochs."""

    def log(self, metrics: Mapping[str, float | int | None], epoch: int, steps: int) -> None:
        """One step for each epoch."""
        self._run.log(dict(metrics), step=epoch)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def missing_package(name: str) -> VitcodError:
    """The error when the package of a logger is not installed."""
    return VitcodError(f"--log-to {name} needs its package; install it with: pip install 'vitcod[{name}]'.")
