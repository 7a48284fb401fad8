"""stdout and stderr of the process. All that is written to them passes here, whoever writes it.

stdout carries results: one that can't be written is an error. stderr carries talk: what can't be
delivered is dropped, and the work goes on. Neither passes on what a terminal would obey.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import visible, without_secrets

_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")


class ReaderGoneError(VitcodError):
    """Whoever read our stdout (``vitcod --help | head -1``) wants no more; nobody need be told."""


class _Guarded:
    """Stands for a text stream. Its ``buffer`` is not to be had: that would be a way round."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach"):
            raise AttributeError(name)
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write it, made visible line by line."""
        self.deliver("\n".join(map(_visible_line, text.split("\n"))))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing waits here; what others have put into the stream goes if it can."""
        with suppress(OSError, ValueError):
            self.stream.flush()

    def deliver(self, data: str | bytes) -> None:
        """Write ``data`` as it is."""
        raise NotImplementedError


class Talk(_Guarded):
    """stderr: what can't be written is dropped."""

    def deliver(self, data: str | bytes) -> None:
        """Write ``data`` as it is, or not; but logs are kept, and an address may say a password."""
        if isinstance(data, str):
            data = without_secrets(data)
        with suppress(OSError, ValueError):
            _write(self.stream, data)


class Results(_Guarded):
    """stdout: what can't be written is an error."""

    def deliver(self, data: str | bytes) -> None:
        """Write ``data`` as it is.

        Raises:
            ReaderGoneError: if nobody reads it any more.
            VitcodError: if it can't be written.
        """
        try:
            _write(self.stream, data)
        except BrokenPipeError as error:
            raise ReaderGoneError("Nobody reads stdout any more.") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VitcodError(
                f"Can't write to stdout ({reason}), so the result is not shown; files that were to be written are "
                "there."
            ) from error


def guard() -> Callable[[], None]:
    """Put :class:`Results` and :class:`Talk` in the place of ``sys.stdout`` and ``sys.stderr``.

    Returns:
        What puts the old ones back.
    """
    before = sys.stdout, sys.stderr
    _open_missing()
    sys.stdout, sys.stderr = Results(sys.stdout), Talk(sys.stderr)

    def restore() -> None:
        sys.stdout, sys.stderr = before

    return restore


def say(text: str) -> None:
    """One line of talk."""
    talk().deliver(f"{visible(text)}\n")


def talk() -> Talk:
    """stderr as it is now."""
    return sys.stderr if isinstance(sys.stderr, Talk) else Talk(sys.stderr)


def results() -> Results:
    """stdout as it is now, or was before :func:`reserved_stdout`."""
    if _reserved is not None:
        return _reserved
    return sys.stdout if isinstance(sys.stdout, Results) else Results(sys.stdout)


def styled(text: str) -> str:
    """``text`` made visible line by line, but for the colours that Rich has put in."""
    parts = _STYLE.split(text)
    parts[::2] = ["\n".join(map(visible, part.split("\n"))) for part in parts[::2]]
    return "".join(parts)


_reserved: Results | None = None


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """stdout is for :func:`results` alone: what libraries print in the block goes to stderr."""
    global _reserved
    outer, stdout, stream = _reserved, sys.stdout, results().stream
    saved = None
    try:
        with suppress(OSError, ValueError, AttributeError):
            if stream.fileno() == 1:  # else it is not the process's own, and what C++ prints goes elsewhere anyway
                stream.flush()
                saved = os.dup(1)
                stream = open(saved, "w", encoding=stream.encoding, closefd=False)  # noqa: SIM115
                os.dup2(2, 1)
        _reserved, sys.stdout = Results(stream), sys.stderr
        yield
    finally:
        _reserved, sys.stdout = outer, stdout
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def _visible_line(line: str) -> str:
    """Tabs stay, and the return at the start with which progress bars begin."""
    start = "\r" if line.startswith("\r") else ""
    return start + "\t".join(map(visible, line.removeprefix("\r").split("\t")))


def _write(stream: Any, data: str | bytes) -> None:
    """Write all of ``data`` past the stream's buffer: what can't be written would wait there for ever."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):  # something in memory
        text = data if isinstance(data, str) else os.fsdecode(data)
        stream.write(text.encode(errors="backslashreplace").decode())
        stream.flush()
        return
    encoded = data if isinstance(data, bytes) else data.encode(stream.encoding or "utf-8", "backslashreplace")
    rest = memoryview(encoded)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # the other end of the pipe is somebody's who doesn't wait
            select.select([], [descriptor], [])


def _open_missing() -> None:
    """Open what the process was started without (``2>&-``) on the null device.

    The next file to be opened would get that number, and talk would be written into it. stdout is opened for
    reading only: writing to it fails as it did, in processes that we start too.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
