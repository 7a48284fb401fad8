"""From settings to a mask that says how it was made; and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import MakeMap

from vitcod_cli.artifacts.arrays import release_pages
from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map, write_attention_map
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks import info as information
from vitcod_cli.masks import ranking
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.masks.std import std_mask
from vitcod_cli.reporting import SilentReporter


def generate(attention: np.ndarray, info: dict[str, Any] | None = None, **settings: Any) -> Mask:
    return generate_mask(
        AttentionMap(attention, 0, info or {}), MaskSettings.from_flat(settings), SilentReporter()
    )


def test_by_default_nine_tenths_are_pruned(make_map: MakeMap) -> None:
    made = generate(make_map(tokens=50))
    assert sparsity_of(made.keep) == pytest.approx(0.9, abs=1e-3)
    assert made.info["method"] == "info"
    assert made.info["sparsity"] == sparsity_of(made.keep)
    again = generate(make_map(tokens=50), info_cut=made.info["info_cut"])
    np.testing.assert_array_equal(again.keep, made.keep)


def test_the_map_says_its_prefix_tokens_and_model(make_map: MakeMap) -> None:
    config = {"model": "some_vit"}
    made = generate(make_map(), {"num_prefix_tokens": 2, "model_config": config}, info_cut=0.1)
    np.testing.assert_array_equal(made.keep, keep_prefix(info_mask(make_map(), 0.1), 2))
    assert (made.info["num_prefix_tokens"], made.info["model_config"]) == (2, config)


def test_the_user_s_prefix_tokens_go_first(make_map: MakeMap) -> None:
    made = generate(make_map(), {"num_prefix_tokens": 2}, info_cut=0.1, num_prefix_tokens=0)
    np.testing.assert_array_equal(made.keep, info_mask(make_map(), 0.1))
    assert made.info["protect_prefix"] is False


def test_a_map_that_does_not_say_has_one_prefix_token(make_map: MakeMap) -> None:
    made = generate(make_map(), info_cut=0.1)
    np.testing.assert_array_equal(made.keep, keep_prefix(info_mask(make_map(), 0.1), 1))


def test_a_pooled_model_has_no_prefix_token(make_map: MakeMap) -> None:
    made = generate(make_map(), {"num_prefix_tokens": 0}, method="ratio", ratio=0.5)
    assert (made.keep.sum(axis=-1) == 8).all()


def test_std_protects_no_prefix_token_unless_told_to(make_map: MakeMap) -> None:
    expected = std_mask(make_map(), 0.5)
    assert not expected[..., 0].all()
    np.testing.assert_array_equal(generate(make_map(), method="std", std_coef=0.5).keep, expected)
    protected = generate(make_map(), method="std", std_coef=0.5, protect_prefix=True)
    np.testing.assert_array_equal(protected.keep, keep_prefix(expected, 1))


def test_no_protection_where_the_user_wants_none(make_map: MakeMap) -> None:
    made = generate(make_map(), info_cut=0.1, protect_prefix=False)
    np.testing.assert_array_equal(made.keep, info_mask(make_map(), 0.1))


@pytest.mark.parametrize(
    ("settings", "empty"),
    [
        ({"method": "std", "std_coef": 100.0}, 102),
        ({"method": "ratio", "ratio": 1.0, "num_prefix_tokens": 0}, 102),
        ({"method": "random", "ratio": 1.0, "num_prefix_tokens": 0}, 102),
    ],
)
def test_no_row_is_ever_empty_and_that_is_said(make_map: MakeMap, settings: dict[str, Any], empty: int) -> None:
    attention, reporter = make_map(), SilentReporter()
    made = generate_mask(AttentionMap(attention), MaskSettings.from_flat(settings), reporter)
    np.testing.assert_array_equal(made.keep.sum(axis=-1), 1)
    np.testing.assert_array_equal(made.keep.argmax(axis=-1), attention.argmax(axis=-1))
    assert len(reporter.warnings) == 1
    assert f"{empty} rows" in reporter.warnings[0]


def test_random_is_the_right_way_round(make_map: MakeMap) -> None:
    made = generate(make_map(tokens=60), method="random", ratio=0.8, seed=3)
    patches = made.keep[..., 1:, 1:]
    assert abs(patches.mean() - 0.2) <= 3 * np.sqrt(0.16 / patches.size)
    assert made.keep[..., 0, :].all()
    assert made.keep[..., 0].all()
    assert made.info["seed"] == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"info_cut": 3.0}, "--info-cut must be between 0 and 1, not 3.0."),
        ({"info_cut": -0.1}, "--info-cut must be between 0 and 1, not -0.1."),
        ({"info_cut": float("nan")}, "--info-cut must be between 0 and 1, not nan."),
        ({"sparsity": 90.0}, "--sparsity must be between 0 and 1, not 90.0."),
        ({"sparsity": 0.9, "info_cut": 0.2}, "--sparsity and --info-cut exclude each other"),
        ({"ratio": 0.9}, "--ratio goes with --method ratio or random, not with info."),
        ({"method": "ratio", "sparsity": 0.9, "ratio": 0.9}, "--sparsity and --ratio exclude each other"),
        ({"method": "random", "sparsity": 0.9, "ratio": 0.9}, "--sparsity and --ratio exclude each other"),
        ({"method": "std", "sparsity": 0.9, "std_coef": 1.0}, "--sparsity and --std-coef exclude each other"),
        ({"method": "std", "ratio": 0.5}, "--ratio goes with --method ratio or random"),
        ({"method": "random", "std_coef": 0.5}, "--std-coef goes with --method std"),
        ({"method": "ratio", "ratio": 1.5}, "--ratio must be between 0 and 1"),
        ({"num_prefix_tokens": -1}, "--num-prefix-tokens must be at least 0"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(VitcodError) as caught:
        MaskSettings.from_flat(values)
    assert words in str(caught.value)


def test_more_prefix_tokens_than_tokens(make_map: MakeMap) -> None:
    with pytest.raises(VitcodError, match="--num-prefix-tokens 18 is more than the 17 tokens"):
        generate(make_map(), info_cut=0.5, num_prefix_tokens=18)


@pytest.mark.parametrize("factor", [2.0, 0.9, 0.0])
def test_rows_must_sum_to_one(make_map: MakeMap, factor: float) -> None:
    attention = make_map()
    attention[1, 0, 4] *= factor
    with pytest.raises(VitcodError, match=f"--attn-map has a row that sums to {factor:g}, not 1"):
        generate(attention, info_cut=0.5)


def test_float32_sums_may_be_a_little_off(make_map: MakeMap) -> None:
    generate(make_map() * np.float32(1.0005), info_cut=0.5)


METHODS: list[dict[str, Any]] = [
    {"sparsity": 0.9},
    {"sparsity": 0.2},
    {"info_cut": 0.4},
    {"method": "ratio"},
    {"method": "ratio", "ratio": 1.0, "num_prefix_tokens": 0},
    {"method": "std"},
    {"method": "std", "std_coef": 100.0},
    {"method": "random"},
    {"allocate": True, "sparsity": 0.5},
]


@pytest.mark.parametrize("settings", METHODS)
def test_no_method_holds_another_array_of_the_map_s_size(
    make_map: MakeMap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Beside the map, which is memory-mapped, and the mask, a quarter of it, parts are all that is held."""
    monkeypatch.setattr(ranking, "PART", 2**12)
    monkeypatch.setattr(ranking, "usable_cores", lambda: 1)
    monkeypatch.setattr(ranking, "_DIGIT", 8)  # of the counts that --allocate makes
    monkeypatch.setattr(information, "FEW", 100)
    monkeypatch.setattr(information, "_DIGITS", 6)
    attention = make_map(blocks=3, heads=4, tokens=240)
    importance = np.random.default_rng(0).random(attention.shape, dtype=np.float32)
    write_attention_map(tmp_path / "map", AttentionMap(attention, 1, {}, importance))
    expected = generate(attention, **settings) if "allocate" not in settings else None
    mapped = read_attention_map(tmp_path / "map")
    tracemalloc.start()
    try:
        made = generate_mask(mapped, MaskSettings.from_flat(settings), SilentReporter())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (0.25 + 0.4) * attention.nbytes
    if expected is not None:
        np.testing.assert_array_equal(made.keep, expected.keep)


def test_what_is_read_is_mapped_and_may_be_read_again(make_map: MakeMap, tmp_path: Path) -> None:
    """Giving back the memory of a mapped file changes nothing; of an array that was written to, it isn't done."""
    np.save(tmp_path / "map.npy", make_map())
    mapped = read_attention_map(tmp_path / "map.npy").attention
    release_pages(mapped)
    np.testing.assert_array_equal(mapped, make_map())
    copy = np.load(tmp_path / "map.npy", mmap_mode="c")
    copy[0, 0, 0, 0] = 7
    view = copy[0]
    view.flags.writeable = False
    release_pages(view)
    assert copy[0, 0, 0, 0] == 7
