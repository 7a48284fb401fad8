"""Turns, medians and ratios, by a clock that the test winds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitcod_cli.bench.timing import Spread, ratio, time_interleaved


class Bench:
    """Passes that take the seconds they are told, and a record of all that happened."""

    def __init__(self) -> None:
        self.now = 100.0
        self.happened: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.happened.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def turns(self, *passes: Callable[[], None], repeats: int, seconds: float = 0.0) -> list[list[float]]:
        return time_interleaved(
            passes, repeats=repeats, seconds=seconds, synchronize=lambda: None, clock=self.clock
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_order_turns_round(bench: Bench) -> None:
    times = bench.turns(bench.work("A", 1), bench.work("B", 2), bench.work("C", 3), repeats=4)
    assert "".join(bench.happened) == "ABC" + "CBA" + "ABC" + "CBA"
    assert times == [[1.0] * 4, [2.0] * 4, [3.0] * 4], "each has its own times, whatever its turn"


def test_rounds_are_even_in_number_when_two_take_turns(bench: Bench) -> None:
    assert [len(times) for times in bench.turns(bench.work("A", 1), bench.work("B", 1), repeats=5)] == [6, 6]
    assert [len(times) for times in bench.turns(bench.work("A", 1), repeats=5)] == [5]


def test_at_least_so_long(bench: Bench) -> None:
    (alone,) = bench.turns(bench.work("A", 0.25), repeats=2, seconds=1.5)
    assert len(alone) == 6
    slow, fast = bench.turns(bench.work("A", 1), bench.work("B", 0.5), repeats=2, seconds=2.5)
    assert sum(slow) + sum(fast) == 6.0, "twice 2.5 seconds, and the round to its even end"


def test_the_device_is_waited_for_inside_the_measured_time() -> None:
    bench, queued = Bench(), []

    def synchronize() -> None:
        bench.now += sum(queued)
        queued.clear()

    queued.append(50.0)  # what was asked for earlier is not ours
    (times,) = time_interleaved(
        [lambda: queued.append(3.0)], repeats=2, seconds=0, synchronize=synchronize, clock=bench.clock
    )
    assert times == [3.0, 3.0]


def test_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]).iqr == 2.0
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_ratio_is_of_pairs() -> None:
    # The machine slows down tenfold for the last pair: the pairs agree all the same.
    assert ratio([1.0, 1.0, 10.0], [2.0, 2.0, 20.0]) == Spread(0.5, 0.5, 0.5)
