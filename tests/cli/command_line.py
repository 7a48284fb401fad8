"""Helpers for tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import vitcod_cli

ROOT = Path(vitcod_cli.__file__).resolve().parents[1]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def the_error(outcome: Outcome) -> str:
    """The one sentence that a user's mistake ended in; checks exit code 1 and that there is no traceback."""
    assert "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, outcome.err
    assert outcome.code == 1
    return errors[0].removeprefix("Error: ")
