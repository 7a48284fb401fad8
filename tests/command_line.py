"""What a command leaves behind, and the types of the fixtures in ``conftest.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import vitcod_cli

ROOT = Path(vitcod_cli.__file__).resolve().parents[1]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence that a user's mistake ended in; checks exit code 1 and that there is no traceback."""
        assert "Traceback" not in self.err
        errors = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, self.err
        assert self.code == 1
        return errors[0].removeprefix("Error: ")


Cli = Callable[..., Outcome]
MakeMap = Callable[..., np.ndarray]


def the_error(outcome: Outcome) -> str:
    """The one sentence that a user's mistake ended in."""
    return outcome.error
