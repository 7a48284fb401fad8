"""The one error type that a user's mistake or a broken input raises."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class VitcodError(Exception):
    """A problem the user can mend, told in one sentence.

    The message names the option (or file) at fault and what to do next. The command line prints
    it without a traceback and exits with code 1; anything else that escapes is a defect of ours
    and keeps its traceback.
    """


class DamagedFileError(VitcodError):
    """A file that is not whole. The message ends in ``; make it again``, for which a caller may know better."""


class Interrupted(SystemExit):
    """A signal stopped the run after its state was saved; the process ends with ``code`` (130, 143)."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The names of ``known`` that look like ``name``, as a question; ``otherwise`` if there are none."""
    close = difflib.get_close_matches(name.lower(), list(known), n=4)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


class _Short(reprlib.Repr):
    """A ``repr`` of bounded size, also of what refers to itself."""

    def repr_int(self, x: int, level: int) -> str:
        """Python itself refuses to write more than 4300 digits."""
        return repr(x) if x.bit_length() < 256 else f"a number of about {x.bit_length() * 3 // 10} digits"


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def shown(value: Any) -> str:
    """``value`` as Python writes it, cut short: for messages, whatever its size."""
    return _SHORT.repr(value)
