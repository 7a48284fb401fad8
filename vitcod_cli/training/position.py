"""How far a run has come, as values that a file may hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vitcod_cli.evaluation.evaluators import SCORES, Score

_MOST = 2**53
"""No count is larger: JSON's numbers are exact up to here."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, after how many epochs it was, and whether of the EMA weights."""

    evaluation: Score
    epoch: int
    ema: bool


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: the epoch it is in, from 0.
        step: steps of that epoch that are done.
        trained: all of them are; what is left of the epoch is its evaluation.
        updates: steps of the whole run.
        skipped: steps that were left out because their loss wasn't finite.
        best, last: evaluations so far.
        sums: of the epoch's losses and images over all processes, for its line in the log.
    """

    epoch: int = 0
    step: int = 0
    trained: bool = False
    updates: int = 0
    skipped: int = 0
    best: Best | None = None
    last: Score | None = None
    sums: list[float] = field(default_factory=list)

    @property
    def between_epochs(self) -> bool:
        """Whether it can be continued by another number of processes."""
        return self.step == 0 or self.trained

    def __str__(self) -> str:
        """Where the next step is: ``step 3 of epoch 2``, or ``the start of epoch 2``."""
        epoch = self.epoch + 1 + self.trained
        return f"the start of epoch {epoch}" if self.between_epochs else f"step {self.step} of epoch {epoch}"

    def changed(self, **values: Any) -> Position:
        """A copy with some fields replaced."""
        return replace(self, **values)

    def next_epoch(self) -> Position:
        """The start of the epoch that follows."""
        return self.changed(epoch=self.epoch + 1, step=0, trained=False, sums=[])

    @classmethod
    def from_dict(cls, values: Any) -> Position:
        """The inverse of :func:`dataclasses.asdict`, of values that come from a file.

        Raises:
            ValueError: if they are anything else; says so.
        """
        try:
            return cls._from_dict(values)
        except ValueError as error:
            raise ValueError(f"its position can't be understood: {error}") from error

    @classmethod
    def _from_dict(cls, values: Any) -> Position:
        _check_names(cls, values)
        best, sums = values["best"], values["sums"]
        if best is not None:
            _check_names(Best, best)
            best = Best(_evaluation(best["evaluation"]), _count(best["epoch"]), _flag(best["ema"]))
        last = None if values["last"] is None else _evaluation(values["last"])
        if (best is None) != (last is None):
            raise ValueError("the best and the last evaluation come together")
        if (
            not isinstance(sums, list)
            or len(sums) not in (0, 4)
            or not all(math.isfinite(_number(x)) for x in sums)
        ):
            raise ValueError("no sums of losses")
        counts = {name: _count(values[name]) for name in ("epoch", "step", "updates", "skipped")}
        return cls(**counts, trained=_flag(values["trained"]), best=best, last=last, sums=sums)


def _check_names(cls: type, values: Any) -> None:
    if not isinstance(values, Mapping) or set(values) != {item.name for item in fields(cls)}:
        raise ValueError(f"no {cls.__name__.lower()}")


def _evaluation(values: Any) -> Score:
    for kind in SCORES:
        if isinstance(values, Mapping) and set(values) == {item.name for item in fields(kind)}:
            metrics = {name: _number(value) for name, value in values.items() if name != "images"}
            return kind(**metrics, images=_count(values["images"]))
    raise ValueError("no evaluation")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _MOST:
        raise ValueError("not a number")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError("not a count")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not a flag")
    return value
