"""When the state of a run is saved, and what is said with it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.training.state import Position, StateFile, Trained


@dataclass
class StateKeeper:
    """Saves the state of a run on rank 0; the other processes hold the same.

    Attributes:
        words: what the state says of the run besides its position.
        minutes: between two saves within an epoch.
    """

    file: StateFile
    trained: Trained
    words: Mapping[str, Any]
    minutes: float
    _last: float = field(default_factory=time.monotonic)

    def save(self, position: Position) -> None:
        """Save the state at ``position``.

        Raises:
            VitcodError: if it can't be written, or the weights aren't finite: a good state is never
                replaced by a broken one.
        """
        if distributed.is_main():
            if not self.trained.is_finite():
                raise VitcodError(
                    f"The weights are not finite after step {position.step} of epoch {position.epoch + 1}. "
                    f"{self.last_good()} Go on from it with --resume and a lower --lr, or --clip-grad."
                )
            self.file.write(self.trained.tensors(), {**self.trained.values(), **self.words}, position)
        self._last = time.monotonic()

    def save_if_due(self, position: Position) -> None:
        """Save when ``minutes`` have passed since the last time."""
        if time.monotonic() - self._last >= 60 * self.minutes:
            self.save(position)

    def last_good(self) -> str:
        """Where the last saved state is, in a sentence."""
        if not self.file.exists():
            return "No state was saved before it."
        position = self.file.position()
        where = f"step {position.step} of epoch {position.epoch + 1}"
        if position.between_epochs:
            where = f"the start of epoch {position.epoch + 1 + position.trained}"
        return f"The last good state, from {where}, is in {self.file.path}."
