"""``--sparsity`` of every method: to the entry, and still the method."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.random import random_mask_of_sparsity
from vitcod_cli.masks.ratio import ratio_mask
from vitcod_cli.masks.report import mask_table
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.std import std_mask, std_mask_of_sparsity
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
    # The coefficient that it says is the largest that gives this mask.
    assert made.info["std_coef"] >= 0.9
    np.testing.assert_array_equal(std_mask(attention, made.info["std_coef"] - 1e-5), expected)
    assert std_mask(attention, made.info["std_coef"] + 1e-5).sum() < expected.sum()
    assert f"by std, std coef {made.info['std_coef']:.10g}" in mask_table(made)[-2]


def test_std_of_rows_that_are_all_the_same() -> None:
    attention = np.full((1, 1, 8, 8), 1 / 8, dtype=np.float32)
    made = generate(attention, method="std", sparsity=0.5)
    assert made.keep.sum() == 32
    # All tie, so those that are left over beside one of each row, its last, are the last of all.
    assert made.keep[..., -1].all()
    assert made.keep[0, 0, 5:].all()


def test_random_depends_on_the_seed_and_looks_at_nothing(make_map: MakeMap) -> None:
    one, same, other = (
        generate(make_map(tokens=40, seed=map_seed), method="random", sparsity=0.8, seed=seed).keep
        for map_seed, seed in ((0, 1), (1, 1), (0, 2))
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    per_key = one[..., 1:, 1:].mean(axis=(0, 1, 2))
    assert per_key.max() < 0.35


def test_random_draws_every_entry_alike() -> None:
    """Not the best of each row first: with the class token's key, no row is empty."""
    attention = np.full((1, 2, 9, 9), 1 / 9, dtype=np.float32)
    draws = [generate(attention, method="random", sparsity=0.7, seed=seed).keep for seed in range(600)]
    free = np.stack(draws)[..., 1:, 1:]
    wanted = round(0.3 * attention.size) - 2 * 17
    assert (free.sum(axis=(1, 2, 3, 4)) == wanted).all()
    share = wanted / 128
    assert abs(free.mean(axis=0) - share).max() < 5 * np.sqrt(share * (1 - share) / 600)
    assert not free.any(axis=-1).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_what_cannot_be_reached(make_map: MakeMap, method: str, prefix: int) -> None:
    """The most that the error says can be reached, and no more that is worth saying."""
    attention = make_map()
    words = {"method": method, "num_prefix_tokens": prefix, "protect_prefix": prefix > 0}
    with pytest.raises(SparsityError, match=r"--sparsity 0.99 can't be reached") as error:
        generate(attention, sparsity=0.99, **words)
    (most,) = re.findall(r"leaves (0\.\d{4}) at most\.$", str(error.value))
    made = generate(attention, sparsity=float(most), **words)
    assert made.keep.sum() == round((1 - float(most)) * attention.size)
    with pytest.raises(SparsityError):
        generate(attention, sparsity=float(most) + 2e-4 + 1 / attention.size, **words)


def test_the_published_part_of_a_mask_is_all_that_is_left(make_map: MakeMap) -> None:
    """At the largest sparsity there is, to the entry: prefix tokens alone."""
    attention = make_map()
    expected = np.zeros(attention.shape, dtype=bool)
    expected[..., :1, :] = expected[..., :1] = True
    for method in METHODS:
        made = generate(attention, method=method, sparsity=1 - expected.mean(), protect_prefix=True)
        np.testing.assert_array_equal(made.keep, expected)
        assert "std_coef" not in made.info  # none is so high


@pytest.mark.parametrize(
    ("method", "own"), [("info", "info_cut"), ("ratio", "ratio"), ("random", "ratio"), ("std", "std_coef")]
)
def test_a_sparsity_and_the_own_option_of_a_method(method: str, own: str) -> None:
    flag = "--" + own.replace("_", "-")
    with pytest.raises(VitcodError, match=rf"^--sparsity and {flag} exclude each other: .*; give one\.$"):
        MaskSettings.from_flat({"method": method, "sparsity": 0.9, own: 0.5})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"method": "random", "ratio": 0.8},
            "Not 80.00%: prefix tokens are kept whole. --sparsity 0.8 gives just that.",
        ),
        (
            {"method": "ratio", "ratio": 0.7},
            "Not 70.00%: prefix tokens are kept whole. --sparsity 0.7 gives just that.",
        ),
        # Rounded up to whole keys of a row, by more than the prefix adds.
        (
            {"method": "ratio", "ratio": 0.06},
            "Not 6.00%: a row keeps whole keys. --sparsity 0.06 gives just that.",
        ),
        (
            {"method": "ratio", "ratio": 0.8, "num_prefix_tokens": 0},
            "Not 80.00%: a row keeps whole keys. --sparsity 0.8 gives just that.",
        ),
        (
            {"method": "random", "ratio": 0.5, "protect_prefix": False},
            "Not 50.00%: each entry is drawn by itself. --sparsity 0.5 gives just that.",
        ),
        # What can't be had isn't promised; of 17 x 17 entries, 33 are of the prefix, 17 one of each row.
        (
            {"method": "random", "ratio": 0.99},
            "Not 99.00%: prefix tokens are kept whole. --sparsity 0.8858 is the most.",
        ),
        (
            {"method": "ratio", "ratio": 1.0, "protect_prefix": False},
            "Not 100.00%: every row keeps a key. --sparsity 0.9411 is the most.",
        ),
        (
            {"method": "random", "ratio": 1.0, "protect_prefix": False},
            "Not 100.00%: every row keeps a key. --sparsity 0.9411 is the most.",
        ),
    ],
)
def test_why_a_ratio_is_another_sparsity(make_map: MakeMap, values: dict[str, Any], line: str) -> None:
    attention = make_map()
    made = generate_mask(AttentionMap(attention), MaskSettings.from_flat(values), SilentReporter())
    assert mask_table(made)[-1] == line
    assert len(line) <= 80
    # What the line points to is true.
    asked = float(line.partition("--sparsity ")[2].split()[0])
    words = {name: value for name, value in values.items() if name != "ratio"}
    exact = generate(attention, **words, sparsity=asked)
    assert exact.keep.sum() == round((1 - asked) * attention.size)
    assert not any("Not" in line for line in mask_table(exact))


def test_a_ratio_that_is_reached_needs_no_words(make_map: MakeMap) -> None:
    made = generate(make_map(tokens=20), method="ratio", ratio=0.75, num_prefix_tokens=0)
    assert made.info["sparsity"] == 0.75
    assert mask_table(made)[-1].startswith("Global token")


def test_the_table_says_what_a_global_token_is(make_map: MakeMap) -> None:
    """And counts what it says: of 60 queries, more than 50."""
    keep = np.zeros((1, 2, 60, 60), dtype=bool)
    keep[..., 0] = True
    keep[0, 0, :50, 1] = keep[0, 0, :51, 2] = True
    table = mask_table(Mask(keep, {"method": "x", "sparsity": 0.5, "protect_prefix": False}))
    assert "Global token: a key that more than 50 queries of the head keep." in table
    assert table[0].endswith("global tokens of a head")
    assert table[1].endswith(" 1 to 2")
    assert max(map(len, table)) <= 80


def largest_of_all(values: np.ndarray, sparsity: float, prefix: int) -> np.ndarray:
    """Of the whole array: prefix tokens (or of each row its best), then the largest; the later of ties."""
    keep = np.zeros(values.shape, dtype=bool)
    keep[..., :prefix, :] = keep[..., :prefix] = True
    if not prefix:
        best = values.shape[-1] - 1 - values[..., ::-1].argmax(axis=-1)
        np.put_along_axis(keep, best[..., None], True, axis=-1)
    order = np.where(keep, np.inf, values).argsort(axis=None, kind="stable")
    keep.reshape(-1)[order[order.size - round((1 - sparsity) * order.size) :]] = True
    return keep


@pytest.mark.parametrize("tokens", [17, 301])
@pytest.mark.parametrize("prefix", [0, 1])
def test_numbers_drawn_part_by_part_are_those_of_the_whole_draw(tokens: int, prefix: int) -> None:
    """Odd counts, so that parts begin in the middle of a step of the generator."""
    shape = (2, 3, tokens, tokens)
    draw = np.random.default_rng(5).random(shape, dtype=np.float32)
    found = random_mask_of_sparsity(shape, 0.7, 5, prefix)
    np.testing.assert_array_equal(found, largest_of_all(draw, 0.7, prefix))


@pytest.mark.parametrize("prefix", [0, 1])
def test_deviations_made_part_by_part_are_those_of_whole_rows(make_map: MakeMap, prefix: int) -> None:
    attention = make_map(tokens=301)
    attention[1, 1, 5] = np.float32(1 / 301)
    mean, std = attention.mean(axis=-1, keepdims=True), attention.std(axis=-1, keepdims=True)
    deviations = np.divide(attention - mean, std, out=np.zeros_like(attention), where=std > 0)
    found, _ = std_mask_of_sparsity(attention, 0.8, prefix)
    np.testing.assert_array_equal(found, largest_of_all(deviations, 0.8, prefix))
