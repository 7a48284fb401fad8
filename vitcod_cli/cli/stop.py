"""Ctrl-C, SIGTERM and their like end the process in an orderly way, at every moment of its life.

A training puts its own handlers on top (``vitcod_cli/signals.py``), which finish a step first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from vitcod_cli.distributed import is_main
from vitcod_cli.errors import Interrupted

_SAME = 1.0
"""Seconds within which another signal is the same request: a terminal and torchrun both send one."""


class StopSignals:
    """Handlers that raise :class:`Interrupted` in the main thread, so that temporary files are removed.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._ending = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def install(self) -> None:
        """Take the signals that nobody else handles, and that are not to be ignored (``nohup``)."""
        if threading.current_thread() is not threading.main_thread():
            return
        # Of a run's processes only the first writes files; the others had better die at once.
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if is_main() else ("SIGINT",)
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.signal(number, self._handle)
        sys.unraisablehook = self._raise_again

    def restore(self) -> None:
        """Put the old handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def end(self) -> None:
        """From now on there is nothing left to be tidied: a signal ends the process at once."""
        self._ending = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that we forked: as if we had never been here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.received is not None and not self._ending and time.monotonic() - self._at < _SAME:
            return
        if self.received is not None or self._ending:
            os._exit(128 + number)
        self.received, self._at = number, time.monotonic()
        raise Interrupted(128 + number)

    def _raise_again(self, unraisable: Any) -> None:
        """A signal that came in a destructor, where nothing can be raised, comes once more."""
        if self.received is None or not isinstance(unraisable.exc_value, Interrupted):
            self._hook(unraisable)
            return
        number, self.received = self.received, None
        main = threading.main_thread().ident  # whose sleep it has to end
        threading.Timer(0.01, signal.pthread_kill, [main, number]).start()
