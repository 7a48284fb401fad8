"""Ranks in the place of values: those of a stable sort, however few entries are sorted at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitcod_cli.attention import ranks
from vitcod_cli.attention.ranks import Values, count_open, final_ranks, rank_others

SHAPE = (2, 3, 40, 40)


def numbers(kind: str) -> Values:
    generator = np.random.default_rng(0)
    values: Any = generator.random(SHAPE, dtype=np.float32)
    if kind == "ties":
        values = np.round(values * 9)
    if kind == "mostly zero":
        values[values < 0.9] = 0
    if kind == "far apart":
        values = np.exp(200 * (values - 0.7), dtype=np.float32)
    if kind == "all zero":
        values[...] = 0
    return np.asarray(values, dtype=np.float32)


def sorted_ranks(values: np.ndarray) -> np.ndarray:
    """The share of all entries that come before each in a stable sort."""
    found = np.empty(values.size, dtype=np.float32)
    found[values.argsort(axis=None, kind="stable")] = np.arange(values.size) / values.size
    return found.reshape(values.shape)


@pytest.mark.parametrize("at_once", [1, 100, 2**24])
@pytest.mark.parametrize("kind", ["plain", "ties", "mostly zero", "far apart", "all zero"])
def test_they_are_those_of_a_stable_sort(monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int) -> None:
    monkeypatch.setattr(ranks, "SORTED", at_once)
    values = numbers(kind)
    expected = sorted_ranks(values)
    assert rank_others(values, None, 0) == values.size
    np.testing.assert_array_equal(final_ranks(values), expected)


@pytest.mark.parametrize("at_once", [100, 2**24])
@pytest.mark.parametrize("kind", ["plain", "ties", "mostly zero"])
def test_what_is_kept_comes_behind_all_others(monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int) -> None:
    """In two rounds: what the first leaves out, what the second does, and the rest, each by its own values."""
    monkeypatch.setattr(ranks, "SORTED", at_once)
    generator = np.random.default_rng(1)
    first = generator.random(SHAPE) < 0.5
    second = first & (generator.random(SHAPE) < 0.5)
    values = numbers(kind)
    before, again = values.copy(), generator.random(SHAPE, dtype=np.float32)
    ranked = rank_others(values, first, 0)
    assert count_open(values) == np.count_nonzero(first) == values.size - ranked
    values[first] = again[first]
    ranked = rank_others(values, second, ranked)
    assert count_open(values) == np.count_nonzero(second)
    assert rank_others(values, None, ranked) == values.size
    level = first.astype(np.float64) + second
    order = np.lexsort((np.where(first, again, before).ravel(), level.ravel()))
    expected = np.empty(values.size, dtype=np.float32)
    expected[order] = np.arange(values.size) / values.size
    np.testing.assert_array_equal(final_ranks(values).ravel(), expected)


def test_no_more_is_sorted_at_once_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the entries that have one value, which needn't be sorted; about, as a sample says where to cut."""
    monkeypatch.setattr(ranks, "SORTED", 500)
    values = numbers("mostly zero")
    edges = ranks._ranges(values, None)
    counts = [np.count_nonzero((values >= low) & (values < high)) for low, high in edges]
    assert sum(counts) == values.size
    assert counts[0] == np.count_nonzero(values == 0)
    assert max(counts[1:]) < 1000
