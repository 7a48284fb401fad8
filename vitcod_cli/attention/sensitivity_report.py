"""What ``vitcod sensitivity`` has found, as a table of at most 80 columns and as plain values."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitcod_cli.attention.sensitivity import Sensitivity

_WIDTH = 80
_CELL = 9
_COLUMNS = (_WIDTH - 11) // _CELL
_MOST_NAMED = 3


@dataclass(frozen=True)
class SensitivityReport:
    """All parts of one model.

    Attributes:
        found: block after block, by sparsity.
        per_head: whether one head was pruned at a time, or all of a block.
        choosing: whether the model has a head, so that answers differ by KL, and not by features.
        about: checkpoint, model, method, images, precision.
    """

    found: Sequence[Sensitivity]
    per_head: bool
    choosing: bool
    about: Mapping[str, Any]

    @property
    def measure(self) -> str:
        """What the change of an answer is called in rows."""
        return "kl" if self.choosing else "relative_error"

    def rows(self) -> list[dict[str, Any]]:
        """A row for each part and sparsity, with the columns of ``--output``."""
        return [
            {
                "block": one.block,
                **({"head": one.head} if self.per_head else {}),
                "target": one.target,
                "sparsity": one.sparsity,
                self.measure: one.change,
                "standard_error": one.standard_error,
                **({"agreement": one.agreement} if self.choosing else {}),
                "images": one.images,
            }
            for one in self.found
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what was measured, and the rows."""
        return {**self.about, "measure": self.measure, "rows": self.rows()}

    def lines(self) -> list[str]:
        """A line for each part, a column for each sparsity; further tables where there are too many columns."""
        targets = sorted({one.target for one in self.found})
        lines: list[str] = []
        for start in range(0, len(targets), _COLUMNS):
            lines += [*([""] if lines else []), *self._table(targets[start : start + _COLUMNS])]
        return [*lines, "", *textwrap.wrap(self._note(targets), _WIDTH)]

    def _table(self, targets: Sequence[float]) -> list[str]:
        changes = {(one.block, one.head, one.target): one.change for one in self.found}
        parts = dict.fromkeys((one.block, one.head) for one in self.found)
        names = "block  head" if self.per_head else "block"
        head = names + "".join(f"{f'{100 * target:g} %':>{_CELL}}" for target in targets)
        lines = [head, "-" * len(head)]
        for part in parts:
            name = f"{part[0]:5}" if part[1] is None else f"{part[0]:5}{part[1]:6}"
            lines.append(name + "".join(_cell(changes.get((*part, target))) for target in targets))
        return lines

    def _note(self, targets: Sequence[float]) -> str:
        what = "head" if self.per_head else "block"
        change = (
            "Mean KL(dense || pruned) of the answer in nats"
            if self.choosing
            else "Mean distance of the features, as a share of the dense ones' length,"
        )
        most = sorted(
            (one for one in self.found if one.target == targets[-1]), key=lambda one: one.change, reverse=True
        )
        names = [f"{_name(one)} ({one.change:.3g})" for one in most[:_MOST_NAMED]]
        return (
            f"{change} on {self.found[0].images} held-out images when one {what} alone is pruned, its share at "
            f"the head of the column, and all others stay dense. Most sensitive at {100 * targets[-1]:g} %: "
            f"{', '.join(names)}."
        )


def _name(one: Sensitivity) -> str:
    return f"block {one.block}" if one.head is None else f"block {one.block} head {one.head}"


def _cell(change: float | None) -> str:
    """Four decimals, of what isn't huge."""
    if change is None:
        return f"{'-':>{_CELL}}"
    return f"{change:{_CELL}.4f}" if change < 100 else f"{change:{_CELL}.1e}"
