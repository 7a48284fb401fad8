"""What people see: stdout carries data, stderr carries talk and progress.

On a terminal progress is a Rich bar; in a pipe or a log file it is a plain line now and then; on
processes other than rank 0 it is nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vitcod_cli.distributed import is_main
from vitcod_cli.reporting import Progress, Reporter, SilentReporter

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from vitcod_cli.training.trainer import FitResult

LINE_EVERY = 10.0
"""Seconds between two plain progress lines."""


def console() -> Reporter:
    """The reporter of this process: Rich, plain or silent."""
    if not is_main():
        return SilentReporter()
    return RichReporter() if sys.stderr.isatty() else PlainReporter()


def print_result(text: str) -> None:
    """Print data for people and pipes to stdout (rank 0 only)."""
    if is_main():
        print(text, flush=True)


def print_json(value: Any) -> None:
    """Print one JSON object to stdout (rank 0 only)."""
    print_result(json.dumps(value, indent=2))


def print_fit(result: FitResult, *, as_json: bool) -> None:
    """Print what a fine-tuning step has reached: the best evaluation, or all of it as JSON."""
    if as_json:
        print_json(result.to_dict())
    else:
        print_result(result.best.line())


def metrics_text(metrics: dict[str, float | str]) -> str:
    """``loss 1.083, lr 1e-05``."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in metrics.items()
    )


class PlainReporter:
    """Lines on stderr, as a log file wants them."""

    def info(self, text: str) -> None:
        """Say one line."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Say one line, marked."""
        print(f"Warning: {text}", file=sys.stderr, flush=True)

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


class RichReporter:
    """A bar with speed and remaining time on the terminal; nested work gets a bar below."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._bars: RichProgress | None = None

    def info(self, text: str) -> None:
        """Say one line, above the bar if there is one."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """Say one line, marked and in yellow."""
        self.console.print(f"Warning: {text}", style="yellow")

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "images") -> Iterator[Progress]:
        """A bar while the block runs."""
        outermost = self._bars is None
        bars = self._bars or self._new_bars()
        if outermost:
            self._bars = bars
            bars.start()
        task = bars.add_task(description, total=total, unit=unit, figures="", speed="")
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
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
            refresh_per_second=4,
        )


class _RichProgress:
    def __init__(self, bars: RichProgress, task: TaskID, unit: str) -> None:
        self.bars, self.task, self.unit = bars, task, unit

    def advance(self, amount: float = 1, **metrics: float | str) -> None:
        """Move the bar."""
        speed = self.bars._tasks[self.task].speed
        shown = f"{speed:.3g} {self.unit}/s" if speed else ""
        self.bars.update(self.task, advance=amount, speed=shown, figures=metrics_text(metrics))
