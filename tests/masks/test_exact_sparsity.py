"""``--sparsity`` of every method: to the entry, and still the method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.ratio import ratio_mask
from vitcod_cli.masks.report import mask_table
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.std import std_mask
from vitcod_cli.reporting import SilentReporter

METHODS = ["ratio", "std", "random"]


def generate(attention: np.ndarray, info: dict[str, Any] | None = None, **values: Any) -> Mask:
    reporter = SilentReporter()
    made = generate_mask(AttentionMap(attention, info=info or {}), MaskSettings.from_flat(values), reporter)
    assert reporter.warnings == []
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.7])
def test_to_the_entry(make_map: MakeMap, method: str, prefix: int, sparsity: float) -> None:
    attention = make_map()
    made = generate(
        attention, method=method, sparsity=sparsity, num_prefix_tokens=prefix, protect_prefix=prefix > 0
    )
    assert made.keep.sum() == round((1 - sparsity) * attention.size)
    assert made.info["sparsity"] == pytest.approx(sparsity, abs=1 / attention.size)
    assert made.keep.any(axis=-1).all()
    assert made.keep[..., :prefix, :].all()
    assert made.keep[..., :prefix].all()


def test_ratio_keeps_as_many_keys_in_each_row(make_map: MakeMap) -> None:
    attention = make_map()
    made = generate(attention, method="ratio", sparsity=0.6)
    counts = made.keep[..., 1:, :].sum(axis=-1)
    assert counts.max() - counts.min() == 1
    # Of each row they are the largest beside the prefix, and the rows with one more are those that miss most.
    rows = np.where(np.arange(17) == 0, np.inf, attention)[..., 1:, :]
    kept = np.where(made.keep[..., 1:, :], rows, np.inf).min(axis=-1)
    left = np.where(made.keep[..., 1:, :], -np.inf, rows).max(axis=-1)
    assert (kept > left).all()
    assert kept[counts == counts.max()].min() >= left[counts == counts.min()].max()


def test_ratio_of_whole_keys_is_the_published_mask(make_map: MakeMap) -> None:
    attention = make_map(tokens=20)
    made = generate(attention, method="ratio", sparsity=0.75, num_prefix_tokens=0)
    np.testing.assert_array_equal(made.keep, ratio_mask(attention, 0.75))


def test_std_of_a_sparsity_is_that_of_its_coefficient(make_map: MakeMap) -> None:
    """One threshold for all rows, beside the largest key of each."""
    attention = make_map()
    expected = std_mask(attention, 0.9)
    assert expected.any(axis=-1).all()
    made = generate(attention, method="std", sparsity=1 - expected.mean())
    np.testing.assert_array_equal(made.keep, expected)


def test_std_of_rows_that_are_all_the_same() -> None:
    attention = np.full((1, 1, 8, 8), 1 / 8, dtype=np.float32)
    made = generate(attention, method="std", sparsity=0.5)
    assert made.keep.sum() == 32


def test_random_depends_on_the_seed_and_looks_at_nothing(make_map: MakeMap) -> None:
    one, same, other = (
        generate(make_map(tokens=40, seed=map_seed), method="random", sparsity=0.8, seed=seed).keep
        for map_seed, seed in ((0, 1), (1, 1), (0, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    per_key = one[..., 1:, 1:].mean(axis=(0, 1, 2))
    assert per_key.max() < 0.35


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_reached(make_map: MakeMap, method: str) -> None:
    with pytest.raises(SparsityError, match=r"--sparsity 0.99 can't be reached.* leaves 0\.\d{4} at most"):
        generate(make_map(), method=method, sparsity=0.99, protect_prefix=True)


def test_why_a_ratio_is_another_sparsity(make_map: MakeMap) -> None:
    *_, last = mask_table(generate(make_map(), method="random", ratio=0.8))
    assert last == "Not 80.00%: prefix tokens are kept whole. --sparsity 0.8 gives just that."
    *_, last = mask_table(generate(make_map(), method="ratio", ratio=0.8, num_prefix_tokens=0))
    assert last == "Not 80.00%: a row keeps whole keys. --sparsity 0.8 gives just that."
    assert not any("Not" in line for line in mask_table(generate(make_map(), method="ratio", sparsity=0.8)))
