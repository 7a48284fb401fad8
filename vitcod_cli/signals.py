"""Ctrl-C, SIGTERM, a lost terminal and the cluster's pre-emption signal: requests to stop at a good moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from vitcod_cli import distributed
from vitcod_cli.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]

_innermost: StopRequest | None = None
"""The request whose ``with`` block the main thread is in."""


class StopRequest:
    """Remembers the first stopping signal that arrives inside its ``with`` block.

    SIGUSR1 is what SLURM jobs ask for ahead of their time limit (``--signal=USR1@120``). A Ctrl-C
    after the first signal ends the process on the spot, which harms no file: all are written aside
    and moved into place. Outside the main thread signals can't be caught; the block does nothing.

    Requests nest: inside, the inner one says what a signal does, and what one has received the other knows.

    Attributes:
        raised: whether this request has raised :class:`Interrupted`; an inner one's does not count.
        where: what it would interrupt, and
        saved: the file that a resumed run would go on from, for the message of whoever ends the run.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        """``at_once``: the whole block is :meth:`at_once`."""
        self.raised = False
        self.where = ""
        self.saved: Path | None = None
        self._received: signal.Signals | None = None
        self._at_once = at_once
        self._before: dict[signal.Signals, Any] = {}
        self._outer: StopRequest | None = None
        self._process = os.getpid()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._received == signal.SIGINT

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM came, SIGUSR1, which announces it, or SIGHUP: the terminal has gone."""
        return self._received is not None and not self.interrupted

    @property
    def name(self) -> str:
        """What has been received, for messages."""
        return "Ctrl-C" if self.interrupted else (self._received or signal.SIGTERM).name

    def learn(self, *, interrupted: bool, terminated: bool) -> None:
        """Take over what any process of the run has received, the same on all of them."""
        if interrupted or (terminated and not self.terminated):
            self._received = signal.SIGINT if interrupted else signal.SIGTERM

    def __enter__(self) -> StopRequest:
        global _innermost
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle) for number in _SIGNALS if not _under_nohup(number)
            }
            self._outer, _innermost = _innermost, self
            if self._outer is not None:
                self._received = self._received or self._outer._received
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        global _innermost  # noqa: PLW0603
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            _innermost = self._outer
            if self._outer is not None:
                self._outer._received = self._outer._received or self._received

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While nothing would be lost: a signal raises :class:`Interrupted` here and now."""
        with self._mode(at_once=True):
            self.stop()
            yield

    def deferred(self) -> AbstractContextManager[None]:
        """While something would be lost: a signal waits for the next :meth:`stop`."""
        return self._mode(at_once=False)

    @contextmanager
    def _mode(self, *, at_once: bool) -> Iterator[None]:
        before, self._at_once = self._at_once, at_once
        try:
            yield
        finally:
            self._at_once = before

    def stop(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self._received is not None:
            self.raised = True
            raise Interrupted(exit_code(terminated=self.terminated))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that was just forked: the main process tells it when to end
        if self._received is not None and number == signal.SIGINT:
            os._exit(130)
        first = self._received is None
        self._received = self._received or signal.Signals(number)
        if self._at_once:
            self.stop()
        if first and distributed.is_main():
            # Not through the console: the signal may have come while that was writing.
            with suppress(OSError):
                os.write(2, b"\nStopping: finishing this step, then saving (Ctrl-C again stops at once).\n")


def _under_nohup(number: signal.Signals) -> bool:
    return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN


def exit_code(*, terminated: bool) -> int:
    """What a shell reports of a process that SIGTERM (143) or else Ctrl-C (130) has ended."""
    return 128 + int(signal.SIGTERM if terminated else signal.SIGINT)
