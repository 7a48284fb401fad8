"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts trainings in processes of their own."""
    server = Zygote()
    yield server
    server.close()
