"""One budget of entries for the whole model."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.masks.generate import generate_mask
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
