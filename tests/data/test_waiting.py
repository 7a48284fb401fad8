"""How long a loop waits for its batches, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vitcod_cli.data import waiting
from vitcod_cli.data.waiting import Waiting


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Batches:
    """Three batches of 5 images, each fetched in 2 s."""

    num_images = 15

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[int]:
        for batch in range(3):
            self.clock.now += 2
            yield batch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting.time, "perf_counter", clock)
    return clock


def test_the_share_of_waiting(clock: Clock) -> None:
    batches = Waiting(Batches(clock))
    seen = []
    for batch in batches:
        seen.append(batch)
        clock.now += 6
    assert (seen, batches.num_images) == ([0, 1, 2], 15)
    assert (batches.seconds, batches.elapsed, batches.share) == (6, 24, 0.25)


def test_nothing_was_waited_for() -> None:
    batches = Waiting[int]([])
    assert list(batches) == []
    assert (batches.share, batches.num_images) == (0, None)
