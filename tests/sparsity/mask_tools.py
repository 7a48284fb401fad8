"""Types of the fixtures in ``conftest.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence that a user's mistake ended in."""
        assert self.code == 1, self
        [sentence] = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        return sentence.removeprefix("Error: ")


Cli = Callable[..., Outcome]
MakeMap = Callable[..., np.ndarray]
