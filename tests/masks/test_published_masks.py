"""The masks equal those of the published code, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ratio import ratio_mask
from vitcod_cli.masks.statistics import attention_macs, global_tokens
from vitcod_cli.masks.std import std_mask

CUTS = (0.0, 1e-12, 0.01, 0.186, 0.5, 0.75, 0.99, 0.999999, 1 - 2**-53, 1.0)


def published_row(row: np.ndarray, info_cut: float) -> np.ndarray:
    """Which keys of one row the paper's method keeps, key by key: sums in float64, and one key more."""
    descending = sorted(map(float, row), reverse=True)
    total, added = 0.0, 0
    while added < len(row) and total < info_cut:
        total += descending[added]
        added += 1
    ranks = np.argsort(np.argsort(row, kind="stable"), kind="stable")
    return ranks >= len(row) - added - 1


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The published map, and the kept entries of each of its published masks."""
    attention = read_attention_map(shared / "golden" / "deit_tiny_dense_attention.npy").attention
    with np.load(shared / "golden" / "reference_masks.npz", allow_pickle=False) as file:
        masks = {name: file[name] for name in file.files if file[name].dtype == np.uint8}
    keep = {
        name: ~np.unpackbits(bits, count=attention.size).astype(bool).reshape(attention.shape)
        for name, bits in masks.items()
    }
    return attention, keep


@pytest.mark.parametrize("cut", [0.2, 0.58, 0.9])
def test_info_masks_of_a_real_map(golden: tuple[np.ndarray, dict[str, np.ndarray]], cut: float) -> None:
    attention, keep = golden
    np.testing.assert_array_equal(keep_prefix(info_mask(attention, cut), 1), keep[f"info_{cut}"])


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_ratio_masks_of_a_real_map(golden: tuple[np.ndarray, dict[str, np.ndarray]], ratio: float) -> None:
    attention, keep = golden
    np.testing.assert_array_equal(keep_prefix(ratio_mask(attention, ratio), 1), keep[f"ratio_{ratio}"])


def test_std_mask_of_a_real_map(golden: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    attention, keep = golden
    np.testing.assert_array_equal(std_mask(attention, 0.5), keep["std_0.5"])


@pytest.mark.parametrize("cut", CUTS)
def test_any_cut_of_a_real_map(golden: tuple[np.ndarray, dict[str, np.ndarray]], cut: float) -> None:
    attention = golden[0][::5, 1:2, ::7]
    expected = np.apply_along_axis(published_row, -1, attention, cut)
    np.testing.assert_array_equal(info_mask(attention, cut), expected)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
def test_any_cut_of_random_maps(make_map: MakeMap, tokens: int, cut: float) -> None:
    attention = make_map(tokens=tokens)
    expected = np.apply_along_axis(published_row, -1, attention, cut)
    np.testing.assert_array_equal(info_mask(attention, cut), expected)


@pytest.mark.parametrize("cut", CUTS)
def test_ties_keep_the_published_number_of_keys(make_map: MakeMap, cut: float) -> None:
    # Eighths: every sum is exact, so cuts and sums meet.
    attention = np.round(make_map(tokens=9, concentration=1.0) * 8).astype(np.float32) / 8
    keep = info_mask(attention, cut)
    np.testing.assert_array_equal(keep, np.apply_along_axis(published_row, -1, attention, cut))


def test_a_sum_that_meets_the_cut_has_reached_it() -> None:
    attention = np.array([[[[0.5, 0.25, 0.125, 0.125]] * 4]], dtype=np.float32)
    assert info_mask(attention, 0.75).sum(axis=-1).max() == 3
    assert info_mask(attention, np.nextafter(0.75, 1)).sum(axis=-1).max() == 4


def test_a_row_that_falls_short_of_one_keeps_every_key_at_cut_one() -> None:
    attention = np.full((1, 1, 7, 7), np.float32(0.142857), dtype=np.float32)
    assert attention.sum(axis=-1, dtype=np.float64).max() < 1
    assert info_mask(attention, 1.0).all()


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [1, 10, 17])
def test_ratio_prunes_the_ranks_below_ratio_times_tokens(make_map: MakeMap, tokens: int, ratio: float) -> None:
    attention = make_map(tokens=tokens)
    keep = ratio_mask(attention, ratio)
    assert (keep.sum(axis=-1) == tokens - math.ceil(ratio * tokens)).all()
    ranks = attention.argsort(axis=-1).argsort(axis=-1)
    np.testing.assert_array_equal(keep, ranks >= ratio * tokens)


def test_std_follows_the_formula(make_map: MakeMap) -> None:
    attention = make_map().astype(np.float64)
    mean = attention.mean(axis=-1, keepdims=True)
    spread = np.sqrt(((attention - mean) ** 2).mean(axis=-1, keepdims=True))
    np.testing.assert_array_equal(std_mask(attention, 0.7), ~(attention < mean + 0.7 * spread))


def test_global_tokens_of_the_published_mask(shared: Path) -> None:
    keep = read_mask(shared / "golden" / "vitcod_deit_tiny_info_0.95.npy").keep
    expected = np.load(shared / "golden" / "vitcod_deit_tiny_global_tokens_0.95.npy", allow_pickle=False)
    np.testing.assert_array_equal(global_tokens(keep), expected)


def test_macs_of_the_published_mask(shared: Path) -> None:
    keep = read_mask(shared / "golden" / "vitcod_deit_tiny_info_0.95.npy").keep
    dense = attention_macs(keep.shape, head_dim=64)
    assert dense == 12 * 3 * 2 * 197 * 197 * 64
    assert attention_macs(keep.shape, 64, keep) / dense == pytest.approx(keep.mean())
