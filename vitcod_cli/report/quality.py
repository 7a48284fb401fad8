"""How the page says what models are worth: accuracy or agreement with the dense one, or nearness of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vitcod_cli.evaluation.features import is_of_features
from vitcod_cli.report.charts import Level, Point, Series, line_chart
from vitcod_cli.report.html import Html
from vitcod_cli.report.sources import is_number
from vitcod_cli.report.texts import figure

Row = Mapping[str, Any]
Card = tuple[str, str, str]
"""A figure of the page's head: its name, the figure, a note."""

_ERROR = ("relative_error", "relative_error_low", "relative_error_high")
_X = "pruned attention entries in %"


class Quality(Protocol):
    """One of the ways."""

    @property
    def images_note(self) -> str:
        """What is said behind the number of validation images."""

    def final(self, dense: Row, row: Row) -> list[Card]:
        """The finished model beside the dense one."""

    def swept(self, dense: Row, rows: Sequence[Row]) -> list[Card]:
        """How sparse the model may become."""

    def cells(self, row: Row) -> dict[str, str]:
        """Columns of the table of results."""

    def curves(self, dense: Row, rows: Sequence[Row]) -> list[Html | None]:
        """Two charts over sparsity."""


def quality_of(record: Mapping[str, Any]) -> Quality:
    """The way of a record of ``compress`` or ``sweep``, which may be damaged."""
    rows, data = record["results"], record.get("data")
    if rows and is_of_features(rows[0]):
        return _Features()
    return _Choices(bool(data.get("labelled", True)) if isinstance(data, Mapping) else True)


@dataclass(frozen=True)
class _Choices:
    """By what models choose: the labels, or what the dense model chooses."""

    labelled: bool

    @property
    def images_note(self) -> str:
        return "" if self.labelled else ", which have no labels"

    @property
    def _what(self) -> str:
        return "Acc@1" if self.labelled else "agreement"

    def final(self, dense: Row, row: Row) -> list[Card]:
        if not self.labelled:
            images = f"on {row.get('images', '?')} images"
            return [("agreement with dense", figure(row.get("agreement"), ".2f"), images)]
        cards = [("Acc@1", figure(row.get("acc1"), ".2f"), f"dense {figure(dense.get('acc1'), '.2f')}")]
        difference = row.get("difference")
        if isinstance(difference, Mapping):
            cards.append(("difference to dense", figure(difference.get("points"), "+.1f"), _interval(difference)))
        return cards

    def swept(self, dense: Row, rows: Sequence[Row]) -> list[Card]:
        images = f"on {dense.get('images', '?')} images"
        cards = [(f"dense {self._what}", figure(dense.get("acc1"), ".2f"), images)]
        for allowed in (1, 3):
            best = _sparsest(rows, _lost, allowed)
            name = f"sparsity for {allowed} point{'s' if allowed > 1 else ''}"
            cards.append(_sparsity_card(name, best, lambda row: _interval(row["difference"])))
        return cards

    def cells(self, row: Row) -> dict[str, str]:
        difference = row.get("difference")
        cells = {}
        if self.labelled:
            paired = ""
            if isinstance(difference, Mapping):
                paired = f"{figure(difference.get('points'), '+.1f')} {_interval(difference)}"
            cells = {
                "Acc@1": figure(row.get("acc1"), ".2f"),
                "to dense [95 %]": paired,
                "Acc@5": figure(row.get("acc5"), ".2f"),
            }
        return {**cells, "loss": figure(row.get("loss"), ".3f"), "agreement": figure(row.get("agreement"), ".1f")}

    def curves(self, dense: Row, rows: Sequence[Row]) -> list[Html | None]:
        if not is_number(dense.get("acc1")):
            return []
        name, value = f"dense ({dense['acc1']:.1f})", dense["acc1"]
        accuracy = line_chart(
            _series(rows, lambda row: row, ("acc1", "acc1_low", "acc1_high")),
            title=f"{self._what} over sparsity, with 95 % intervals",
            x=_X,
            y=f"{self._what} in %",
            level=Level(name, value, _number(dense.get("acc1_low")), _number(dense.get("acc1_high"))),
        )
        difference = line_chart(
            _series(rows, lambda row: row.get("difference") or {}, ("points", "low", "high")),
            title="Difference to dense on the same images, with 95 % intervals",
            x=_X,
            y="points",
            level=Level("dense", 0.0),
        )
        return [accuracy, difference]


class _Features:
    """Of models without a head: how near their features are to the dense model's."""

    images_note = ", whose labels aren't looked at"

    def final(self, dense: Row, row: Row) -> list[Card]:
        worst = f"{figure(row.get('cosine_p5'), '.4f')} in the worst twentieth"
        return [
            ("cosine with dense", figure(row.get("cosine"), ".4f"), worst),
            ("error to dense", figure(row.get("relative_error"), ".1%"), _error_interval(row)),
        ]

    def swept(self, dense: Row, rows: Sequence[Row]) -> list[Card]:
        def card(allowed: float) -> Card:
            best = _sparsest(rows, _error, allowed)
            return _sparsity_card(f"sparsity for an error of {allowed:.0%}", best, _error_interval)

        return [card(0.1), card(0.3)]

    def cells(self, row: Row) -> dict[str, str]:
        error = figure(row.get("relative_error"), ".1%")
        return {
            "cosine": figure(row.get("cosine"), ".4f"),
            "worst": figure(row.get("cosine_p5"), ".4f"),
            "error [95 %]": f"{error} {_error_interval(row)}" if error else "",
            "patches": figure(row.get("patch_cosine"), ".4f"),
            "their error": figure(row.get("patch_error"), ".1%"),
            "same nearest": figure(row.get("same_nearest"), ".1%"),
            "overlap": figure(row.get("neighbour_overlap"), ".1%"),
        }

    def curves(self, dense: Row, rows: Sequence[Row]) -> list[Html | None]:
        error = line_chart(
            _series(rows, lambda row: row, _ERROR, factor=100),
            title="Error of the features over sparsity, with 95 % intervals",
            x=_X,
            y="error to dense in %",
            level=Level("dense", 0.0),
        )
        cosine = line_chart(
            _series(rows, lambda row: row, ("cosine", "cosine_p5", "cosine")),
            title="Cosine with dense, down to the worst twentieth",
            x=_X,
            y="cosine",
            level=Level("dense", 1.0),
        )
        return [error, cosine]


def _sparsest(rows: Sequence[Row], cost: Callable[[Row], float], allowed: float) -> Row | None:
    """The sparsest of those that cost no more than is allowed."""
    within = [row for row in rows if is_number(row.get("sparsity")) and cost(row) <= allowed]
    return max(within, key=lambda row: float(row["sparsity"]), default=None)


def _sparsity_card(name: str, best: Row | None, interval: Callable[[Row], str]) -> Card:
    if best is None:
        return name, "none", ""
    return name, f"{best['sparsity']:.0%}", f"{best['name']}, {interval(best)}"


def _lost(row: Row) -> float:
    """Points lost to the dense model; infinite where they aren't known."""
    difference = row.get("difference")
    points = _number(difference.get("points")) if isinstance(difference, Mapping) else None
    return math.inf if points is None else -points


def _error(row: Row) -> float:
    error = _number(row.get("relative_error"))
    return math.inf if error is None else error


def _series(
    rows: Sequence[Row], of: Callable[[Row], Row], names: tuple[str, str, str], *, factor: float = 1.0
) -> list[Series]:
    """A line a method.

    Args:
        of: the figures of a row.
        names: of the value and the ends of its interval, which are multiplied by ``factor``.
    """
    value = names[0]

    def point(row: Row) -> Point:
        numbers = [_number(of(row).get(name)) for name in names]
        y, low, high = (None if number is None else factor * number for number in numbers)
        assert y is not None  # or there is no point
        return Point(100 * row["sparsity"], y, low, high)

    methods = dict.fromkeys(str(row["method"]) for row in rows)
    ordered = sorted(rows, key=lambda row: float(row["sparsity"]))
    return [
        Series(
            method, [point(row) for row in ordered if row["method"] == method and is_number(of(row).get(value))]
        )
        for method in methods
    ]


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _interval(difference: Mapping[str, Any]) -> str:
    return f"[{figure(difference.get('low'), '+.1f')}, {figure(difference.get('high'), '+.1f')}]"


def _error_interval(row: Row) -> str:
    low, high = (_number(row.get(f"relative_error_{end}")) for end in ("low", "high"))
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"
