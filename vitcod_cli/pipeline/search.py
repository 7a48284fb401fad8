"""The largest sparsity that costs no more than is allowed, in few tries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LEAST, MOST = 10, 99
"""Percent: the range that is searched."""

_START = 90
_TRIES = 7
_EXPONENT = 1.3
"""Of the second try, when one drop is known: a guess, that what a mask costs grows like density^-1.3."""


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        best: percent that cost no more than allowed, None if there is none.
        drops: of every percent that was tried, in order.
    """

    best: int | None
    drops: dict[int, float]


def search(drop_at: Callable[[int], float], allowed: float) -> Found:
    """Try sparsities, in whole percent, until the largest within ``allowed`` is known or seven were tried.

    Args:
        drop_at: what a sparsity costs, in points; expected to grow with it, chance aside. It may be infinite.
    """
    drops: dict[int, float] = {}
    low, high = LEAST - 1, MOST + 1  # the largest that is good (or none), the smallest that is not
    percent = _START
    while len(drops) < _TRIES and high - low > 1:
        drops[percent] = drop_at(percent)
        if drops[percent] <= allowed:
            low = percent
        else:
            high = percent
        percent = min(max(_guess(drops, allowed, low, high), low + 1), high - 1)
    return Found(low if low >= LEAST else None, drops)


def _guess(drops: dict[int, float], allowed: float, low: int, high: int) -> int:
    """Where the drop should be ``allowed``, by the power law through the two tries nearest to it."""
    newest = next(reversed(drops))
    points = [
        (math.log(1 - percent / 100), math.log(drop)) for percent, drop in drops.items() if 0 < drop < math.inf
    ]
    if not points or allowed <= 0 or not 0 < drops[newest] < math.inf:
        # Nothing to go by: the middle of what is left, by density where one end is open.
        if low >= LEAST and high <= MOST:
            return (low + high) // 2
        density = (1 - newest / 100) * (0.5 if drops[newest] <= allowed else 2)
        return round(100 * (1 - density))
    target = math.log(allowed)
    points.sort(key=lambda point: abs(point[1] - target))
    (x, y), slope = points[0], -_EXPONENT
    if len(points) > 1 and points[1][0] != x:
        measured = (points[1][1] - y) / (points[1][0] - x)
        slope = measured if measured < -0.2 else slope
    return math.floor(100 * (1 - math.exp(min(x + (target - y) / slope, 0))))
