"""How long the model waits for its images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Waiting(Generic[ItemT]):
    """Passes on ``batches`` and counts the time that the user of them waits for the next one.

    A GPU computes while the next batch is fetched: there the wait is an upper bound of the time it idles.
    """

    def __init__(self, batches: Iterable[ItemT]) -> None:
        self.batches = batches
        self.num_images: int | None = getattr(batches, "num_images", None)
        self.seconds = 0.0
        self.elapsed = 0.0

    def __iter__(self) -> Iterator[ItemT]:
        started = asked = time.perf_counter()
        for batch in self.batches:
            self.seconds += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
            self.elapsed = asked - started

    @property
    def share(self) -> float:
        """Of the time that the loop over the batches took, 0 to 1."""
        return self.seconds / self.elapsed if self.elapsed else 0.0
