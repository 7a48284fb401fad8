"""Differences on the same images: against published figures, exact sums and simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from vitcod_cli.evaluation.paired import accuracy_interval, mcnemar, paired_difference


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 11)])
def test_mcnemar_is_the_exact_binomial_sum(gained: int, lost: int) -> None:
    pairs = gained + lost
    tail = sum(comb(pairs, k) for k in range(min(gained, lost) + 1)) / 2**pairs
    assert mcnemar(gained, lost) == pytest.approx(min(1, 2 * tail), rel=1e-12)


def test_many_pairs_neither_overflow_nor_vanish() -> None:
    assert mcnemar(25000, 25000) == pytest.approx(1, abs=0.01)
    assert 0 < mcnemar(2400, 2600) < 0.01


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    model = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return model, np.repeat([True, False, True, False], [both, gained, lost, neither])


def test_the_interval_of_agresti_and_min() -> None:
    """Half an image more of each kind of pair, worked out by hand."""
    model, reference = outcomes(227, 132, 107, 678)
    found = paired_difference(model, reference, np.zeros(1144), np.zeros(1144))
    shift, spread = 25 / 1146, ((240 / 1146 - (25 / 1146) ** 2) / 1146) ** 0.5
    assert (found.gained, found.lost) == (132, 107)
    assert found.points == pytest.approx(100 * 25 / 1144)
    assert found.low == pytest.approx(100 * (shift - 1.96 * spread), abs=1e-3)
    assert found.high == pytest.approx(100 * (shift + 1.96 * spread), abs=1e-3)


def test_the_interval_holds_what_it_promises() -> None:
    """Of 2,000 samples of 400 images, 95 % hold the true difference of -5 points."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        both, gained, lost, neither = random.multinomial(400, [0.65, 0.05, 0.10, 0.20])
        model, reference = outcomes(both, gained, lost, neither)
        found = paired_difference(model, reference, np.zeros(400), np.zeros(400))
        inside += found.low <= -5 <= found.high
    assert 0.935 < inside / 2000 < 0.97


def test_no_difference_is_not_certain() -> None:
    model, reference = outcomes(10, 0, 0, 10)
    found = paired_difference(model, reference, np.ones(20), np.ones(20))
    assert found.points == 0
    assert found.low < 0 < found.high
    assert found.p == 1
    assert (found.loss, found.loss_low, found.loss_high) == (0, 0, 0)


def test_one_image_has_no_spread_of_losses() -> None:
    found = paired_difference(np.array([True]), np.array([False]), np.array([0.5]), np.array([1.0]))
    assert found.loss == -0.5
    assert (found.loss_low, found.loss_high) == (-np.inf, np.inf)


def test_losses_are_compared_in_pairs() -> None:
    """Images differ by far more than the models: only pairs show that one is worse."""
    random = np.random.default_rng(1)
    reference = random.exponential(2, 500)
    found = paired_difference(np.ones(500, bool), np.ones(500, bool), reference + 0.1, reference)
    assert found.loss_low == pytest.approx(0.1)
    assert found.loss_high == pytest.approx(0.1)


def test_the_interval_of_an_accuracy() -> None:
    """Wilson's, for 385 of 500; at 0 and 100 % it isn't empty."""
    assert accuracy_interval(77.0, 500) == pytest.approx((73.11, 80.47), abs=0.01)
    assert accuracy_interval(0.0, 10)[1] > 20
    assert accuracy_interval(100.0, 10)[0] < 80
