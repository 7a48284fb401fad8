"""The cut that gives a sparsity: as near as any cut comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks import info as information
from vitcod_cli.masks import ranking
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


def steps_held_at_once(attention: np.ndarray, sparsity: float, prefix: int) -> tuple[float, int]:
    """The cut, and how many numbers were looked at to choose it."""
    search = information._CutSearch(attention, prefix)
    return search.find(sparsity), len(search._outcomes(search._bracket(sparsity))[0])


@pytest.mark.parametrize("prefix", [0, 1, 12])
@pytest.mark.parametrize("sparsity", [0.02, 0.3, 0.6])
def test_narrower_bounds_only_save_memory(
    make_map: MakeMap, monkeypatch: pytest.MonkeyPatch, sparsity: float, prefix: int
) -> None:
    attention = make_map(blocks=2, heads=2, tokens=60)
    cuts, sizes = [], []
    for few in (10**9, 100, 0):
        monkeypatch.setattr(information, "FEW", few)
        cut, size = steps_held_at_once(attention, sparsity, prefix)
        cuts.append(cut)
        sizes.append(size)
    assert cuts[0] == cuts[1] == cuts[2]
    assert sizes[0] >= sizes[1] >= sizes[2] >= 3
    assert sizes[1] <= 110
    assert sizes[2] <= 10


def test_bounds_close_in_on_steps_that_differ_in_their_last_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Almost all steps of almost flat rows with one large key lie side by side."""
    attention = np.full((1, 2, 40, 40), 1e-7) * (1 + np.random.default_rng(0).uniform(0, 1e-6, (1, 2, 40, 40)))
    attention[..., 7] = 0.999
    expected, size = steps_held_at_once(attention, 0.5, 1)
    assert size > 1000
    monkeypatch.setattr(information, "FEW", 50)
    found, size = steps_held_at_once(attention, 0.5, 1)
    assert found == expected
    assert size <= 60


def test_rows_that_are_done_at_once(monkeypatch: pytest.MonkeyPatch, make_map: MakeMap) -> None:
    """Where most steps are one number, no bounds hold few of them; the cut is found all the same."""
    attention = make_map(tokens=30)
    attention[:, 1] = np.eye(30)
    expected = information._CutSearch(attention, 1).find(0.8)
    monkeypatch.setattr(information, "FEW", 0)
    assert information._CutSearch(attention, 1).find(0.8) == expected


@pytest.mark.parametrize("part", [1, 100, 2000])
def test_parts_make_no_difference(make_map: MakeMap, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    attention = make_map(tokens=60)
    keep, cut = info_mask_of_sparsity(attention, 0.8, 3)
    monkeypatch.setattr(ranking, "PART", part)
    again, same = info_mask_of_sparsity(attention, 0.8, 3)
    assert cut == same
    np.testing.assert_array_equal(keep, again)


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


def test_a_large_map_that_can_t_be_so_sparse() -> None:
    attention = np.full((3, 3, 130, 130), 1 / 130, dtype=np.float32)
    with pytest.raises(VitcodError, match=r"--sparsity 1 can't be reached"):
        info_cut_of(attention, 1.0, 1)


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
