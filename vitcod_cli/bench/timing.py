"""Timing interleaved, and what is said of it: the median and the middle half."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, in the unit of the values."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; quartiles are interpolated linearly."""
        lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, lower, upper)

    @property
    def iqr(self) -> float:
        """The interquartile range."""
        return self.upper - self.lower


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as long the first takes, from pairs timed right after each other.

    A machine that slows down for a while slows both of a pair: their ratio hardly changes.
    """
    return Spread.of([a / b for a, b in zip(mine, theirs, strict=True)])


def time_interleaved(
    passes: Sequence[Callable[[], object]],
    *,
    repeats: int,
    seconds: float,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each call of each of ``passes``, timed interleaved: A B, B A, A B, ...

    The order is turned round after each round, so that whatever a pass leaves to the next (a warm
    cache, a hot chip) falls to all alike; with more than one pass the rounds are even in number.

    Args:
        repeats: rounds at least.
        seconds: measured time of all passes together, at least this times their number.
        synchronize: waits until the device has done what it was asked to.
    """
    times: list[list[float]] = [[] for _ in passes]
    order = list(range(len(passes)))
    rounds = 0
    while True:
        for index in order:
            synchronize()
            start = clock()
            passes[index]()
            synchronize()
            times[index].append(clock() - start)
        rounds += 1
        order.reverse()
        balanced = len(passes) == 1 or rounds % 2 == 0
        if balanced and rounds >= repeats and sum(map(sum, times)) >= seconds * len(passes):
            return times
