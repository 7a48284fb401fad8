"""The cut that gives a sparsity: as near as any cut comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks import info as information
from vitcod_cli.masks.info import info_mask, info_mask_of_sparsity
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.statistics import sparsity_of


def info_cut_of(attention: np.ndarray, sparsity: float, num_prefix_tokens: int) -> float:
    return info_mask_of_sparsity(attention, sparsity, num_prefix_tokens)[1]


def all_sparsities(attention: np.ndarray, prefix: int) -> np.ndarray:
    """The sparsity at every cut at which it can change."""
    sums = np.cumsum(-np.sort(-attention, axis=-1), axis=-1, dtype=np.float64)
    cuts = [0.0, *np.unique(sums[sums <= 1]), 1.0]
    return np.array([sparsity_of(keep_prefix(info_mask(attention, cut), prefix)) for cut in cuts])


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_no_cut_comes_nearer(make_map: MakeMap, seed: int, prefix: int) -> None:
    attention = make_map(blocks=2, heads=2, tokens=9, seed=seed)
    reachable = all_sparsities(attention, prefix)
    for sparsity in np.linspace(reachable.min(), reachable.max(), 23):
        cut = info_cut_of(attention, float(sparsity), prefix)
        assert 0 <= cut <= 1
        reached = sparsity_of(keep_prefix(info_mask(attention, cut), prefix))
        assert abs(reached - sparsity) <= np.abs(reachable - sparsity).min() + 1e-12


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_no_cut_comes_nearer_where_values_tie(make_map: MakeMap, prefix: int) -> None:
    attention = np.round(make_map(blocks=2, heads=2, tokens=9, concentration=1.0) * 8).astype(np.float32) / 8
    attention[..., -1] += 1 - attention.sum(axis=-1)
    attention = np.abs(attention)
    reachable = all_sparsities(attention, prefix)
    for sparsity in np.linspace(reachable.min(), reachable.max(), 23):
        cut = info_cut_of(attention, float(sparsity), prefix)
        reached = sparsity_of(keep_prefix(info_mask(attention, cut), prefix))
        assert abs(reached - sparsity) <= np.abs(reachable - sparsity).min() + 1e-12


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9, 0.95, 0.975])
def test_a_real_map(shared: Path, sparsity: float) -> None:
    attention = np.load(shared / "golden" / "deit_tiny_dense_attention.npy", allow_pickle=False)
    keep, cut = info_mask_of_sparsity(attention, sparsity, 1)
    keep = keep_prefix(keep, 1)
    assert abs(sparsity_of(keep) - sparsity) * attention.size <= 1
    assert cut == info_cut_of(attention, sparsity, 1)
    np.testing.assert_array_equal(keep, keep_prefix(info_mask(attention, cut), 1))


@pytest.mark.parametrize("prefix", [0, 1, 12])
@pytest.mark.parametrize("sparsity", [0.02, 0.5, 0.85])
def test_a_sample_of_the_rows_only_saves_time(
    make_map: MakeMap, monkeypatch: pytest.MonkeyPatch, sparsity: float, prefix: int
) -> None:
    attention = make_map(blocks=2, heads=2, tokens=170)
    assert np.isfinite(information._bracket([attention[0]] * 4, 1000.0)[0])
    sampled = info_cut_of(attention, sparsity, prefix)
    monkeypatch.setattr(information, "_bracket", lambda steps, wanted: (-np.inf, np.inf))
    assert info_cut_of(attention, sparsity, prefix) == sampled
    # Bounds that miss the place are noticed.
    for bounds in ((-np.inf, 1e-3), (0.999, np.inf), (0.4, 0.4), (0.4999, 0.5)):
        monkeypatch.setattr(information, "_bracket", lambda steps, wanted, bounds=bounds: bounds)
        assert info_cut_of(attention, sparsity, prefix) == sampled


def test_the_cut_has_no_more_digits_than_it_needs() -> None:
    attention = np.array([[[[0.5, 0.26, 0.13, 0.11]] * 4]], dtype=np.float32)
    cut = info_cut_of(attention, 0.25, 0)  # keeps three: the cut lies above 0.5 and up to 0.76
    assert cut == 0.7


@pytest.mark.parametrize("sparsity", [0.95, 1.0])
def test_too_sparse_to_be_reached(make_map: MakeMap, sparsity: float) -> None:
    most = sparsity_of(keep_prefix(info_mask(make_map(), 0.0), 1))
    with pytest.raises(VitcodError, match=rf"--sparsity {sparsity:g} .* to {most:.4f} ") as caught:
        info_cut_of(make_map(), sparsity, 1)
    assert "\n" not in str(caught.value)


def test_too_dense_to_be_reached() -> None:
    attention = np.zeros((1, 1, 8, 8), dtype=np.float32)
    attention[..., 2] = 1  # the first key reaches every cut: two are kept, whatever it is
    with pytest.raises(VitcodError, match=r"--sparsity 0\.5 .* only 0\.7500 to 0\.8750 "):
        info_cut_of(attention, 0.5, 0)


def test_nothing_pruned(make_map: MakeMap) -> None:
    attention = make_map(concentration=50.0)
    cut = info_cut_of(attention, 0.0, 1)
    assert sparsity_of(keep_prefix(info_mask(attention, cut), 1)) < 1e-3


def test_all_tokens_are_prefix(make_map: MakeMap) -> None:
    assert info_cut_of(make_map(tokens=4), 0.0, 4) == 1.0
    with pytest.raises(VitcodError, match=r"only 0\.0000 to 0\.0000"):
        info_cut_of(make_map(tokens=4), 0.5, 4)


def test_one_token() -> None:
    assert info_cut_of(np.ones((2, 3, 1, 1), dtype=np.float32), 0.0, 0) == 1.0
