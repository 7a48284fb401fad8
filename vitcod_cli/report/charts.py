"""Line charts as inline SVG.

matplotlib's SVG has fixed colours and sizes; these follow the page, on a dark screen, a narrow one, and in print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitcod_cli.report.html import Html, element

_WIDTH, _HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 42
_COLORS = 4


@dataclass(frozen=True)
class Point:
    """A figure, perhaps with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Level:
    """A horizontal line, perhaps with a band."""

    name: str
    y: float
    low: float | None = None
    high: float | None = None


def line_chart(series: Sequence[Series], *, title: str, x: str, y: str, level: Level | None = None) -> Html | None:
    """A figure with its caption and legend; None where there is nothing to draw."""
    series = [
        Series(one.name, [p for p in one.points if math.isfinite(p.x) and math.isfinite(p.y)]) for one in series
    ]
    series = [one for one in series if one.points]
    if not series:
        return None
    points = [point for one in series for point in one.points]
    values = [
        value for p in points for value in (p.y, p.low, p.high) if value is not None and math.isfinite(value)
    ]
    if level is not None:
        values += [value for value in (level.y, level.low, level.high) if value is not None]
    scale = _Scale(_ticks([point.x for point in points]), _ticks(values))
    parts = [*scale.axes(x, y)]
    if level is not None:
        parts += scale.level(level)
    for number, one in enumerate(series):
        parts += scale.line(one, number % _COLORS)
    names = [one.name for one in series] + ([level.name] if level else [])
    svg = element(
        "svg",
        *parts,
        *_legend(series, level),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT + 20 * math.ceil(len(names) / 2)}",
        role="img",
        aria_label=f"{title}: {_in_words(series)}",
    )
    return element("figure", element("figcaption", title), svg)


class _Scale:
    def __init__(self, xs: list[float], ys: list[float]) -> None:
        self.xs, self.ys = xs, ys

    def x(self, value: float) -> float:
        low, high = self.xs[0], self.xs[-1]
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys[0], self.ys[-1]
        value = min(max(value, low), high)
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x: str, y: str) -> list[Html]:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = []
        for value in self.ys:
            at = f"{self.y(value):.1f}"
            parts.append(element("line", x1=_LEFT, x2=right, y1=at, y2=at, class_="grid"))
            parts.append(element("text", f"{value:g}", x=_LEFT - 6, y=at, dy="4", text_anchor="end"))
        for value in self.xs:
            at = f"{self.x(value):.1f}"
            parts.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
            parts.append(element("text", f"{value:g}", x=at, y=bottom + 18, text_anchor="middle"))
        parts.append(element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
        middle = (_LEFT + right) / 2
        parts.append(element("text", x, x=f"{middle:g}", y=_HEIGHT - 6, text_anchor="middle"))
        turned = f"translate(11 {(_TOP + bottom) / 2:g}) rotate(-90)"
        parts.append(element("text", y, transform=turned, text_anchor="middle"))
        return parts

    def level(self, level: Level) -> list[Html]:
        parts, right = [], _WIDTH - _RIGHT
        if level.low is not None and level.high is not None:
            top, bottom = self.y(level.high), self.y(level.low)
            width, height = right - _LEFT, f"{bottom - top:.1f}"
            parts.append(element("rect", x=_LEFT, y=f"{top:.1f}", width=width, height=height, class_="band"))
        at = f"{self.y(level.y):.1f}"
        parts.append(element("line", x1=_LEFT, x2=right, y1=at, y2=at, class_="dense"))
        return parts

    def line(self, series: Series, color: int) -> list[Html]:
        at = [(self.x(point.x), self.y(point.y)) for point in series.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts = [element("polyline", points=path, fill="none", stroke_width="2", class_=f"s{color}")]
        for point, (x, y) in zip(series.points, at, strict=True):
            if point.low is not None and point.high is not None:
                low, high = f"{self.y(point.low):.1f}", f"{self.y(point.high):.1f}"
                parts.append(element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=low, y2=high, class_=f"s{color}"))
            title = element("title", f"{series.name}: {point.y:g} at {point.x:g}")
            parts.append(element("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r="3.2", class_=f"f{color}"))
        return parts


def _legend(series: Sequence[Series], level: Level | None) -> list[Html]:
    parts = []
    entries = [(one.name, f"s{number % _COLORS}") for number, one in enumerate(series)]
    entries += [(level.name, "dense")] if level is not None else []
    for place, (name, style) in enumerate(entries):
        x, y = _LEFT + (place % 2) * 210, _HEIGHT + 10 + 20 * (place // 2)
        parts.append(element("line", x1=x, x2=x + 24, y1=y, y2=y, stroke_width="2", class_=style))
        parts.append(element("text", name if len(name) <= 26 else f"{name[:23]}...", x=x + 30, y=y, dy="4"))
    return parts


def _in_words(series: Sequence[Series]) -> str:
    """For those who can't see it: the ends of every line."""
    return "; ".join(
        f"{one.name} from {one.points[0].y:.4g} at {one.points[0].x:g} to {one.points[-1].y:.4g} at "
        f"{one.points[-1].x:g}"
        for one in series
    )


def _ticks(values: Sequence[float], count: int = 6) -> list[float]:
    """Round numbers from below the least to above the largest."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = 10 ** math.floor(math.log10((high - low) / count))
    factors = (1, 2, 2.5, 5, 10, 20)
    if all(value == int(value) for value in values):  # of blocks and epochs there are no halves
        step, factors = max(step, 1), (1, 2, 5, 10, 20, 50)
    step = next(step * factor for factor in factors if (high - low) / (step * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, max(last, first + 1) + 1)]
