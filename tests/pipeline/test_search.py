"""The search for the largest sparsity: laws on curves of all kinds."""

from __future__ import annotations

import math

import pytest

from vitcod_cli.pipeline.search import LEAST, MOST, search


def power(scale: float, exponent: float) -> dict[int, float]:
    return {percent: scale * (1 - percent / 100) ** -exponent for percent in range(LEAST, MOST + 1)}


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("allowed", [0.5, 1.0, 2.0, 5.0])
def test_on_power_laws_it_finds_the_largest(scale: float, exponent: float, allowed: float) -> None:
    curve = power(scale, exponent)
    within = [percent for percent, drop in curve.items() if drop <= allowed]
    found = search(curve.__getitem__, allowed)
    assert len(found.drops) <= 7
    if within:
        assert found.best is not None
        assert within[-1] - 1 <= found.best <= within[-1]
    else:
        assert found.best is None


@pytest.mark.parametrize("edge", [11, 37, 62, 83, 90, 97])
def test_a_cliff_is_found_nearly(edge: int) -> None:
    """Nothing is lost up to there, all behind it: nothing to interpolate."""
    found = search(lambda percent: 0.0 if percent <= edge else math.inf, 1.0)
    assert found.best is not None
    assert found.best <= edge
    assert edge - found.best <= 13


def test_everything_is_allowed() -> None:
    assert search(lambda percent: percent / 10, 100).best == MOST


def test_nothing_is_good_enough() -> None:
    tried = search(lambda percent: 50 + percent / 100, 1.0)
    assert tried.best is None
    assert min(tried.drops) < 40


def test_models_may_get_better() -> None:
    """A negative drop has no logarithm."""
    curve = power(0.1, 1.3)
    found = search(lambda percent: -0.4 if percent <= 92 else curve[percent], 1.0)
    assert found.best in (92, 93)


def test_no_sparsity_is_tried_twice_and_the_best_was_tried() -> None:
    seen: list[int] = []

    def drop(percent: int) -> float:
        seen.append(percent)
        return 0.3 * (1 - percent / 100) ** -0.9 * (1.3 if percent % 2 else 0.8)

    found = search(drop, 2.0)
    assert len(seen) == len(set(seen))
    assert list(found.drops) == seen
    assert found.best in seen
    assert found.drops[found.best] <= 2.0
