"""Ctrl-C, SIGTERM and the cluster's pre-emption signal as a request to stop at the next good moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from vitcod_cli import distributed
from vitcod_cli.errors import Interrupted

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class StopRequest:
    """Remembers the first stopping signal that arrives inside its ``with`` block.

    SIGUSR1 is what SLURM jobs ask for ahead of their time limit (``--signal=USR1@120``). A Ctrl-C
    after the first signal ends the process on the spot, which harms no file: all are written aside
    and moved into place. Outside the main thread signals can't be caught; the block does nothing.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._received == signal.SIGINT

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM came, or SIGUSR1, which announces it."""
        return self._received is not None and not self.interrupted

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While nothing would be lost: a signal raises :class:`Interrupted` here and now."""
        self._at_once = True
        try:
            self._raise()
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            os._exit(130)
        first = self._received is None
        self._received = self._received or signal.Signals(number)
        if self._at_once:
            self._raise()
        if first and distributed.is_main():
            # Not through the console: the signal may have come while that was writing.
            with suppress(OSError):
                os.write(2, b"\nStopping: finishing this step, then saving (Ctrl-C again stops at once).\n")

    def _raise(self) -> None:
        if self._received is not None:
            raise Interrupted(exit_code(terminated=self.terminated))


def exit_code(*, terminated: bool) -> int:
    """What a shell reports of a process that SIGTERM (143) or else Ctrl-C (130) has ended."""
    return 128 + int(signal.SIGTERM if terminated else signal.SIGINT)
