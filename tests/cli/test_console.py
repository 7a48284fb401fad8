"""What people see on a terminal, in a log file and on the other processes."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vitcod_cli.cli import console as module
from vitcod_cli.cli.console import PlainReporter, RichReporter, console, print_json, print_result
from vitcod_cli.reporting import SilentReporter


class Clock:
    """A clock that the test winds."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_data_to_stdout_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = console()
    assert isinstance(reporter, PlainReporter), "pytest's stderr is no terminal"
    reporter.info("some [bold]talk[/bold]")
    reporter.warn("beware")
    print_result("* Acc@1 1.000")
    print_json({"acc1": 1.0})
    out, err = capsys.readouterr()
    assert err == "some [bold]talk[/bold]\nWarning: beware\n"
    assert out.startswith("* Acc@1 1.000\n")
    assert json.loads(out.partition("\n")[2]) == {"acc1": 1.0}


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert isinstance(console(), SilentReporter)
    print_result("x")
    print_json({})
    assert capsys.readouterr() == ("", "")


def test_plain_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with PlainReporter().progress("eval", 1000) as progress:
        for _ in range(100):
            clock.now += 0.25
            progress.advance(10, loss=1.23456, lr=1e-05, note="ok")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "eval: 400/1000 images (40%), 0:00:15 left, 40 images/s, loss 1.235, lr 1e-05, note ok",
        "eval: 800/1000 images (80%), 0:00:05 left, 40 images/s, loss 1.235, lr 1e-05, note ok",
    ]


def test_plain_progress_of_unknown_length(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with PlainReporter().progress("download", None, unit="bytes") as progress:
        clock.now += 11
        progress.advance(22)
    assert capsys.readouterr().err == "download: 22 bytes, 2 bytes/s\n"


def test_short_work_prints_no_progress(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with PlainReporter().progress("eval", 10) as progress:
        clock.now += 9
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_rich_bar() -> None:
    reporter, screen = RichReporter(), io.StringIO()
    terminal = {"TERM": "xterm-256color"}
    reporter.console = Console(file=screen, force_terminal=True, width=100, highlight=False, _environ=terminal)
    with reporter.progress("train", 100) as outer:
        outer.advance(40, loss=1.5)
        reporter.info("a line above")
        with reporter.progress("eval", 10) as inner:
            inner.advance(10)
            reporter._bars.refresh()
            assert len(reporter._bars.tasks) == 2, "work inside work has a bar of its own"
        assert len(reporter._bars.tasks) == 1
        outer.advance(60, loss=1.25)
        reporter._bars.refresh()
    assert reporter._bars is None
    shown = screen.getvalue()
    assert "a line above" in shown
    assert "train" in shown
    assert "40%" in shown
    assert "loss 1.25" in shown


def test_rich_reporter_can_be_used_again_after_an_error() -> None:
    reporter = RichReporter()
    reporter.console.file = io.StringIO()
    with pytest.raises(RuntimeError, match="no"), reporter.progress("train", 1):
        raise RuntimeError("no")
    with reporter.progress("train", 1) as progress:
        progress.advance()
