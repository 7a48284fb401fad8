"""Laws that hold for every map."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.prefix import fill_empty_rows, keep_prefix
from vitcod_cli.masks.random import random_mask
from vitcod_cli.masks.ratio import ratio_mask
from vitcod_cli.masks.statistics import attention_macs, block_sparsity, global_tokens, head_sparsity, sparsity_of
from vitcod_cli.masks.std import std_mask

METHODS = {
    "info": lambda attention: info_mask(attention, 0.6),
    "ratio": lambda attention: ratio_mask(attention, 0.7),
    "std": lambda attention: std_mask(attention, 0.5),
}


@pytest.mark.parametrize("seed", range(3))
def test_a_higher_cut_keeps_more(make_map: MakeMap, seed: int) -> None:
    attention = make_map(seed=seed)
    masks = [info_mask(attention, cut) for cut in (0, 0.1, 0.4, 0.8, 0.99, 1)]
    for lower, higher in pairwise(masks):
        assert (higher | ~lower).all()
    assert sparsity_of(masks[0]) == pytest.approx(1 - 1 / 17)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9])
def test_what_is_kept_reaches_the_cut_and_is_the_largest(make_map: MakeMap, cut: float) -> None:
    attention = make_map().astype(np.float64)
    keep = info_mask(attention, cut)
    assert ((attention * keep).sum(axis=-1) >= cut - 1e-12).all()
    smallest_kept = np.where(keep, attention, np.inf).min(axis=-1)
    largest_pruned = np.where(keep, -np.inf, attention).max(axis=-1)
    assert (smallest_kept >= largest_pruned).all()
    # One key fewer than "one key more" still reaches the cut; two fewer don't.
    counts = keep.sum(axis=-1)
    descending = -np.sort(-attention, axis=-1)
    sums = np.concatenate([np.zeros((*counts.shape, 1)), descending.cumsum(axis=-1)], axis=-1)
    one_fewer = np.take_along_axis(sums, counts[..., None] - 1, axis=-1)[..., 0]
    two_fewer = np.take_along_axis(sums, np.maximum(counts[..., None] - 2, 0), axis=-1)[..., 0]
    whole = counts == attention.shape[-1]
    assert (whole | (one_fewer >= cut)).all()
    assert (whole | (two_fewer < cut) | (counts == 1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_heads_and_blocks_are_independent(make_map: MakeMap, method: str) -> None:
    attention = make_map(blocks=4, heads=3)
    mask, make = METHODS[method](attention), METHODS[method]
    np.testing.assert_array_equal(make(attention[::-1, [2, 0, 1]]), mask[::-1, [2, 0, 1]])
    np.testing.assert_array_equal(make(attention[1, 2]), mask[1, 2])


@pytest.mark.parametrize("method", METHODS)
def test_renaming_keys_renames_the_mask(make_map: MakeMap, method: str) -> None:
    attention = make_map().astype(np.float64)  # float64: the mean of a row depends on its order in the last bit
    order = np.random.default_rng(1).permutation(attention.shape[-1])
    mask = METHODS[method](attention)
    np.testing.assert_array_equal(METHODS[method](attention[..., order]), mask[..., order])


@pytest.mark.parametrize("method", METHODS)
def test_a_map_that_is_not_contiguous(make_map: MakeMap, method: str) -> None:
    attention = make_map(tokens=12)
    wide = np.zeros((*attention.shape[:-1], 24), dtype=np.float32)
    wide[..., ::2] = attention
    before = attention.copy()
    if method != "std":  # whose float32 sums depend on the layout
        np.testing.assert_array_equal(METHODS[method](wide[..., ::2]), METHODS[method](attention))
    np.testing.assert_array_equal(attention, before)


def test_ties_are_broken_alike_every_time() -> None:
    attention = np.full((1, 1, 10, 10), 0.1, dtype=np.float32)
    keep = info_mask(attention, 0.35)
    assert (keep.sum(axis=-1) == 5).all()
    np.testing.assert_array_equal(keep, np.tile(np.arange(10) >= 5, (1, 1, 10, 1)))
    np.testing.assert_array_equal(ratio_mask(attention, 0.5), keep)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_prefix_rows_and_columns_are_kept_and_nothing_else_changes(make_map: MakeMap, prefix: int) -> None:
    keep = info_mask(make_map(), 0.2)
    protected = keep_prefix(keep.copy(), prefix)
    assert protected[..., :prefix, :].all()
    assert protected[..., :, :prefix].all()
    np.testing.assert_array_equal(protected[..., prefix:, prefix:], keep[..., prefix:, prefix:])


def test_random_keeps_the_share_asked_for() -> None:
    shape = (2, 3, 100, 100)
    for ratio in (0.0, 0.1, 0.5, 0.9, 1.0):
        kept = random_mask(shape, ratio, seed=7).mean()
        sigma = np.sqrt(ratio * (1 - ratio) / np.prod(shape))
        assert abs(kept - (1 - ratio)) <= 3 * sigma


def test_random_depends_on_the_seed_alone() -> None:
    shape = (2, 2, 20, 20)
    np.testing.assert_array_equal(random_mask(shape, 0.5, seed=1), random_mask(shape, 0.5, seed=1))
    assert (random_mask(shape, 0.5, seed=1) != random_mask(shape, 0.5, seed=2)).any()


def test_empty_rows_get_their_largest_key(make_map: MakeMap) -> None:
    attention = make_map()
    keep = info_mask(attention, 0.5)
    keep[1, 0, 3] = keep[2, 1, 16] = False
    before = keep.copy()
    assert fill_empty_rows(keep, attention) == 2
    assert keep[1, 0, 3].nonzero()[0].tolist() == [attention[1, 0, 3].argmax()]
    assert keep[2, 1, 16].nonzero()[0].tolist() == [attention[2, 1, 16].argmax()]
    keep[1, 0, 3] = keep[2, 1, 16] = False
    np.testing.assert_array_equal(keep, before)


def test_full_rows_are_left_alone(make_map: MakeMap) -> None:
    attention = make_map()
    keep = info_mask(attention, 0.5)
    before = keep.copy()
    assert fill_empty_rows(keep, attention) == 0
    np.testing.assert_array_equal(keep, before)


def test_statistics_of_a_mask_counted_by_hand() -> None:
    keep = np.zeros((2, 2, 4, 4), dtype=bool)
    keep[0, 0] = True
    keep[0, 1, :, 0] = True
    keep[1, 0, :3, 1] = True
    keep[1, 1] = np.eye(4, dtype=bool)
    np.testing.assert_allclose(head_sparsity(keep), [[0, 0.75], [13 / 16, 0.75]])
    np.testing.assert_allclose(block_sparsity(keep), [0.375, 25 / 32])
    assert sparsity_of(keep) == pytest.approx(1 - 27 / 64)
    assert global_tokens(keep, more_than_rows=2).tolist() == [[4, 1], [1, 0]]
    assert global_tokens(keep, more_than_rows=3).tolist() == [[4, 1], [0, 0]]
    assert attention_macs(keep.shape, head_dim=5) == 2 * 64 * 5
    assert attention_macs(keep.shape, 5, keep) == 2 * 27 * 5
