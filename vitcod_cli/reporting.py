"""Messages and progress of long work, without knowing the console: a protocol and its silent form.

And :func:`visible`, through which whatever goes to a terminal passes.

The command line passes a Rich implementation (``cli/console.py``); tests and processes other
than rank 0 pass :class:`SilentReporter`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

_SECRET = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=[?&]token=)[^&\s'\")]+", re.IGNORECASE)
"""In an address: who one is, with a password perhaps, or a token."""

_BLANKS = " \u00a0\u3000"


def visible(text: str) -> str:
    """``text`` as one line that shows itself and does nothing: ``\\x1b``, ``\\n``, ``\\u202e`` are spelt out.

    Names of files, values of options and what foreign files say of themselves may hold escape sequences,
    line ends and marks that turn the direction of reading, which would forge or hide other messages.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _BLANKS else char.encode("unicode_escape").decode() for char in text
    )


def without_secrets(text: str) -> str:
    """``text`` whose addresses say neither a password nor a token: for what is kept, or shown to others."""
    return _SECRET.sub("...", text)


class Progress(Protocol):
    """Of one running piece of work."""

    def advance(self, amount: float = 1, **metrics: float | str) -> None:
        """Go on by ``amount`` units; ``metrics`` (``loss=1.08, lr=1e-4``) are shown beside the bar."""


class Reporter(Protocol):
    """Where messages to people go. Data goes to stdout by other ways, never through here."""

    def info(self, text: str) -> None:
        """Say one line."""

    def warn(self, text: str) -> None:
        """Say one line that should not be overlooked."""

    def progress(
        self, description: str, total: float | None, unit: str = "images"
    ) -> AbstractContextManager[Progress]:
        """Show the progress of ``total`` units (None: unknown) with speed and remaining time."""


class _SilentProgress:
    def advance(self, amount: float = 1, **metrics: float | str) -> None:
        pass


class SilentReporter:
    """Says nothing; remembers the warnings, for tests."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        """Drop the line."""

    def warn(self, text: str) -> None:
        """Keep the line in ``warnings``."""
        self.warnings.append(text)

    @contextmanager
    def progress(self, description: str, total: float | None, unit: str = "images") -> Iterator[Progress]:
        """Show nothing."""
        yield _SilentProgress()


class _Quiet(SilentReporter):
    def warn(self, text: str) -> None:
        """Drop the line, too."""


QUIET: Reporter = _Quiet()
"""For callers from Python who ask for no messages."""
