"""What people see: stdout carries data, stderr carries talk and progress.

On a terminal progress is a Rich bar; in a pipe or a log file it is a plain line now and then; on
processes other than rank 0 it is nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vitcod_cli.cli.streams import results, say, styled, talk
from vitcod_cli.distributed import is_main
from vitcod_cli.reporting import Progress, Reporter, SilentReporter, visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from vitcod_cli.training.result import FitResult

LINE_EVERY = 10.0
"""Seconds between two plain progress lines."""


def console() -> Reporter:
    """The reporter of this process: Rich, plain or silent."""
    if not is_main():
        return SilentReporter()
    return RichReporter() if sys.stderr.isatty() else PlainReporter()


def print_result(text: str) -> None:
    """Print one line for people and pipes to stdout (rank 0 only).

    Raises:
        VitcodError: if it can't be written, as all of these.
    """
    if is_main():
        results().deliver(f"{visible(text)}\n")


def print_table(text: str) -> None:
    """Print lines that Rich has laid out, colours and all (rank 0 only)."""
    if is_main():
        results().deliver(f"{styled(text)}\n")


def shows_colors() -> bool:
    """Whether stdout is a terminal."""
    return bool(results().isatty())


def print_path(path: str | os.PathLike[str]) -> None:
    """Print the path of a file that was written (rank 0 only): byte for byte, unless on a terminal."""
    if is_main():
        name = os.fspath(path)
        results().deliver(f"{visible(name)}\n" if shows_colors() else os.fsencode(name) + b"\n")


def print_json(value: Any) -> None:
    """Print one JSON object to stdout (rank 0 only), in ASCII. What isn't a finite number is null."""
    if is_main():
        results().deliver(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_fit(result: FitResult, *, as_json: bool) -> None:
    """Print what a fine-tuning step has reached: the best evaluation, or all of it as JSON."""
    if as_json:
        print_json(result.to_dict())
    else:
        print_result(result.line())


def metrics_text(metrics: dict[str, float | str]) -> str:
    """``loss 1.083, lr 1e-05``."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in metrics.items()
    )


class PlainReporter:
    """Lines on stderr, as a log file wants them."""

    def info(self, text: str) -> None:
        """Say one line."""
        say(text)

    def warn(self, text: str) -> None:
        """Say one line, marked."""
        say(f"Warning: {text}")

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "images") -> Iterator[Progress]:
        """A line every ten seconds; none for work that takes less."""
        yield _PlainProgress(self, description, total, unit)


class _PlainProgress:
    def __init__(self, reporter: PlainReporter, description: str, total: float | None, unit: str) -> None:
        self.reporter, self.description, self.total, self.unit = reporter, description, total, unit
        self.done = 0.0
        self.start = self.last_line = time.monotonic()

    def advance(self, amount: float = 1, **metrics: float | str) -> None:
        """Count, and say a line when the last is long enough ago."""
        self.done += amount
        now = time.monotonic()
        if now - self.last_line < LINE_EVERY:
            return
        self.last_line = now
        speed = self.done / (now - self.start)
        text = f"{self.description}: {self.done:.0f}"
        if self.total:
            left = (self.total - self.done) / speed
            text += f"/{self.total:.0f} {self.unit} ({self.done / self.total:.0%}), {_duration(left)} left"
        else:
            text += f" {self.unit}"
        self.reporter.info(", ".join(filter(None, [f"{text}, {speed:.3g} {self.unit}/s", metrics_text(metrics)])))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class _Unescaped:
    """stderr for Rich: what can't be delivered is dropped, and escape sequences are Rich's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(talk(), name)

    def write(self, text: str) -> int:
        """Write it as it is."""
        talk().deliver(text)
        return len(text)


class RichReporter:
    """A bar with speed and remaining time on the terminal; nested work gets a bar below."""

    def __init__(self) -> None:
        from rich.console import Console

        file: Any = _Unescaped()
        # Values are made visible here; what Rich adds itself the terminal is to obey.
        self.console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._bars: RichProgress | None = None

    def info(self, text: str) -> None:
        """Say one line, above the bar if there is one."""
        self.console.print(visible(text))

    def warn(self, text: str) -> None:
        """Say one line, marked and in yellow."""
        self.console.print(visible(f"Warning: {text}"), style="yellow")

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "images") -> Iterator[Progress]:
        """A bar while the block runs."""
        outermost = self._bars is None
        bars = self._bars or self._new_bars()
        if outermost:
            self._bars = bars
            bars.start()
        task = bars.add_task(visible(description), total=total, unit=unit, figures="", speed="")
        try:
            yield _RichProgress(bars, task, unit)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    def _new_bars(self) -> RichProgress:
        from rich import progress

        return progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[speed]}", markup=False),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,  # what others print goes through our own streams
            redirect_stderr=False,
        )


class _RichProgress:
    def __init__(self, bars: RichProgress, task: TaskID, unit: str) -> None:
        self.bars, self.task, self.unit = bars, task, unit

    def advance(self, amount: float = 1, **metrics: float | str) -> None:
        """Move the bar."""
        speed = self.bars._tasks[self.task].speed
        shown = f"{speed:.3g} {self.unit}/s" if speed else ""
        self.bars.update(self.task, advance=amount, speed=visible(shown), figures=visible(metrics_text(metrics)))
