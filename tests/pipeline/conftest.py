"""Tiny models need not be timed for seconds."""

from __future__ import annotations

import pytest

import vitcod_cli.pipeline.plan
import vitcod_cli.pipeline.scores


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitcod_cli.pipeline.plan, "_MEASURED", 0.0)
    monkeypatch.setattr(vitcod_cli.pipeline.scores, "_TIMED_SECONDS", 0.0)
