"""One budget of entries for the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, MakeMap

from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.masks.floor_settings import FloorSettings, Per
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.reporting import SilentReporter


@pytest.fixture
def importance(make_map: MakeMap) -> np.ndarray:
    """Another for every block and head, over four orders of magnitude."""
    shape = make_map().shape
    return (10 ** np.random.default_rng(3).uniform(-4, 0, shape)).astype(np.float32)


def kept(score: np.ndarray, sparsity: float, prefix: int) -> np.ndarray:
    """By definition, entry by entry."""
    keep = np.zeros(score.shape, dtype=bool)
    for row in np.ndindex(score.shape[:3]):
        keep[(*row, max(range(score.shape[-1]), key=lambda key, row=row: (score[row][key], key)))] = True
        if row[2] < prefix:
            keep[row] = True
        keep[row][:prefix] = True
    # Where entries tie, the later is the larger, as in a stable ascending sort.
    order = sorted(
        (tuple(entry) for entry in np.argwhere(~keep)), key=lambda entry: (score[entry], entry), reverse=True
    )
    for entry in order[: round((1 - sparsity) * score.size) - keep.sum()]:
        keep[entry] = True
    return keep


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.7])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_definition(importance: np.ndarray, sparsity: float, prefix: int) -> None:
    found = allocated_mask(importance, sparsity, prefix)
    np.testing.assert_array_equal(found, kept(importance, sparsity, prefix))
    assert np.count_nonzero(found) == round((1 - sparsity) * found.size)


def test_the_later_of_equal_entries_are_kept(importance: np.ndarray) -> None:
    equal = np.ones_like(importance)
    np.testing.assert_array_equal(allocated_mask(equal, 0.5, 1), kept(equal, 0.5, 1))


def test_a_block_that_matters_more_keeps_more(importance: np.ndarray) -> None:
    importance[1] *= 100
    keep = allocated_mask(importance, 0.6, 1)
    assert keep[1].mean() > 1.5 * keep[0].mean()


def test_every_row_keeps_a_key_where_nothing_matters(importance: np.ndarray) -> None:
    keep = allocated_mask(np.zeros_like(importance), 1 - 1 / importance.shape[-1], 0)
    assert (keep.sum(axis=-1) == 1).all()


def test_a_sparsity_out_of_reach(importance: np.ndarray) -> None:
    with pytest.raises(VitcodError, match=r"--sparsity 0\.99 can't be reached: .* leaves 0\.\d+ at most"):
        allocated_mask(importance, 0.99, 1)


def test_the_mask_says_how_it_was_made(make_map: MakeMap, importance: np.ndarray) -> None:
    given = AttentionMap(make_map(), 5, {"num_prefix_tokens": 1}, importance)
    made = generate_mask(given, MaskSettings.from_flat({"sparsity": 0.7, "allocate": True}), SilentReporter())
    assert (made.info["method"], made.info["protect_prefix"]) == ("allocated", True)
    assert made.info["sparsity"] == sparsity_of(made.keep) == pytest.approx(0.7, abs=1e-3)


def test_a_map_without_importance(make_map: MakeMap) -> None:
    with pytest.raises(VitcodError, match="dump-attn --importance-images 256"):
        generate_mask(AttentionMap(make_map()), MaskSettings.from_flat({"allocate": True}), SilentReporter())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"method": "ratio"}, "--method ratio"),
        ({"info_cut": 0.5}, "--info-cut"),
        ({"protect_prefix": False}, "--no-protect-prefix"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, object], word: str) -> None:
    with pytest.raises(VitcodError, match=word):
        MaskSettings.from_flat({"allocate": True, **settings})


def with_floor(score: np.ndarray, sparsity: float, density: float, per: str) -> np.ndarray:
    """By definition, entry by entry: the floor of each head (or block), then the best of all others; no prefix."""
    keep = score == score.max(axis=-1, keepdims=True)
    ranked = sorted(np.ndindex(score.shape), key=lambda entry: (score[entry], entry), reverse=True)
    depth = 2 if per == "head" else 1
    for place in np.ndindex(score.shape[:depth]):
        own = [entry for entry in ranked if entry[:depth] == place and not keep[entry]]
        least = np.ceil(density * keep[place].size)
        for entry in own[: max(int(least - keep[place].sum()), 0)]:
            keep[entry] = True
    others = [entry for entry in ranked if not keep[entry]]
    for entry in others[: round((1 - sparsity) * score.size) - keep.sum()]:
        keep[entry] = True
    return keep


@pytest.mark.parametrize("per", ["head", "block"])
@pytest.mark.parametrize("density", [0.15, 0.2])
def test_a_floor_by_definition(importance: np.ndarray, per: Per, density: float) -> None:
    importance[1] *= 100
    importance[:, 1] *= 100
    floor = FloorSettings(min_density=density, min_density_per=per)
    found = allocated_mask(importance, 0.75, 0, floor)
    np.testing.assert_array_equal(found, with_floor(importance, 0.75, density, per))
    assert np.count_nonzero(found) == round(0.25 * found.size)
    depth = (-2, -1) if per == "head" else (-3, -2, -1)
    free = allocated_mask(importance, 0.75, 0).mean(axis=depth)
    assert free.min() < density <= found.mean(axis=depth).min()


def test_a_floor_below_all_heads_changes_nothing(importance: np.ndarray) -> None:
    free = allocated_mask(importance, 0.6, 1)
    least = free.mean(axis=(-2, -1)).min()
    np.testing.assert_array_equal(free, allocated_mask(importance, 0.6, 1, FloorSettings(min_density=least)))


def test_prefix_tokens_count_for_the_floor(importance: np.ndarray) -> None:
    """17 tokens: the prefix and a key of each row are a fifth of a head."""
    importance[0] *= 100
    found = allocated_mask(importance, 0.6, 1, FloorSettings(min_density=0.25))
    assert found.mean(axis=(-2, -1)).min() == pytest.approx(np.ceil(0.25 * 17**2) / 17**2)
    assert found[..., 0].all()
    assert found[..., 0, :].all()


def test_a_floor_that_is_all_that_is_left(importance: np.ndarray) -> None:
    """Whole entries of each head: rounded up, they may be one more than a sparsity to many digits leaves."""
    entries = importance[0, 0].size
    floor = FloorSettings(min_density=60 / entries)
    found = allocated_mask(importance, 1 - 60 / entries, 0, floor)
    assert (found.sum(axis=(-2, -1)) == 60).all()
    with pytest.raises(SparsityError, match=r"--min-density 0\.207612: .* every head keeps, 0\.7889 is the most"):
        allocated_mask(importance, 1 - 60 / entries, 0, FloorSettings(min_density=60 / entries + 1e-8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_density": 0.1}, "--min-density is an option of --allocate"),
        ({"allocate": True, "min_density_per": "block"}, "--min-density-per says .*: give that too"),
        (
            {"allocate": True, "min_density": 0.2},
            r"--min-density 0\.2 keeps more than --sparsity 0\.9 leaves.* 0\.1 ",
        ),
        ({"allocate": True, "min_density": 1.5}, "--min-density must be above 0 and at most 1"),
    ],
)
def test_floors_that_mean_nothing(settings: dict[str, object], message: str) -> None:
    with pytest.raises(VitcodError, match=message):
        MaskSettings.from_flat(settings)


def test_the_command_with_a_floor(cli: Cli, make_map: MakeMap, importance: np.ndarray) -> None:
    importance[0] *= 100
    write_attention_map("map.safetensors", AttentionMap(make_map(), 5, {"num_prefix_tokens": 1}, importance))
    words = ("gen-mask", "--attn-map", "map.safetensors", "--allocate", "--sparsity", 0.6, "--min-density")
    figures = json.loads(cli(*words, 0.3, "--json", "--min-density-per", "block").out)
    assert (figures["min_density"], figures["min_density_per"]) == (0.3, "block")
    assert figures["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert max(figures["per_block"]) == pytest.approx(1 - 174 / 578)  # 30 % of 2 x 17 x 17, rounded up
    error = cli(*words, 0.4001, "--output", "no.safetensors").error
    assert "--min-density 0.4001 keeps more than --sparsity 0.6 leaves" in error
    assert not Path("no.safetensors").exists()
