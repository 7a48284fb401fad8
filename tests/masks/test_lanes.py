"""Masks that fill an accelerator's lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Cli

from vitcod_cli.accelerator.estimate import estimate
from vitcod_cli.accelerator.hardware import Hardware
from vitcod_cli.accelerator.workload import Shape
from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.masks.budget import Importance, necessary_entries, necessary_with_floor
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.masks.lanes import fill_lanes
from vitcod_cli.masks.polarize import keys_of_queries, queries_of_keys, token_order


def importance(shape: tuple[int, ...] = (2, 3, 65, 65), seed: int = 0) -> Importance:
    """Shares of entries that are worth less: near the diagonal, and in some columns, more is worth keeping."""
    random = np.random.default_rng(seed)
    place = np.arange(shape[-1])
    near = np.exp(-np.abs(place[:, None] - place) / random.uniform(1, 10, size=(*shape[:2], 1, 1)))
    columns = random.exponential(size=(*shape[:2], 1, shape[-1])) ** 2
    worth = (near + 0.1 * columns) * random.exponential(size=shape)
    ranks: Importance = (worth.ravel().argsort().argsort() / worth.size).astype(np.float32).reshape(shape)
    return ranks


def idle(keep: np.ndarray, lanes: int) -> float:
    """The share of lanes that idle, over keys and queries, without the first token's."""
    counts = np.concatenate([queries_of_keys(keep)[..., 1:], keys_of_queries(keep[..., 1:])[..., 1:]], axis=-1)
    return 1 - float(counts.sum() / (-(-counts // lanes) * lanes).sum())


@pytest.mark.parametrize("lanes", [4, 8])
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_lines_are_filled(sparsity: float, lanes: int) -> None:
    worth = importance()
    free, filled = allocated_mask(worth, sparsity, 1), fill_lanes(worth, sparsity, 1, lanes)
    assert 1 - filled.mean() >= sparsity - 1e-9
    assert 1 - filled.mean() < sparsity + 0.02
    assert (filled >= necessary_entries(worth, 1)).all()
    assert idle(filled, lanes) < 0.4 * idle(free, lanes)
    assert worth[filled].sum() > 0.97 * worth[free].sum()
    assert np.array_equal(filled, fill_lanes(worth, sparsity, 1, lanes))


@pytest.mark.parametrize("seed", [2, 21, 54, 59])
def test_what_is_necessary_stays(seed: int) -> None:
    """Also where it costs a step of its key and its query alone."""
    worth = np.random.default_rng(seed).random((1, 2, 12, 12)).astype(np.float32)
    assert (fill_lanes(worth, 0.6, 1, 2) >= necessary_entries(worth, 1)).all()


def test_every_head_keeps_its_floor() -> None:
    worth = importance()
    worth[1] *= 0.3
    floor = FloorSettings(min_density=0.2)
    free, filled = fill_lanes(worth, 0.7, 1, 8), fill_lanes(worth, 0.7, 1, 8, floor)
    assert free.mean(axis=(-2, -1)).min() < 0.2 <= filled.mean(axis=(-2, -1)).min()
    assert (filled >= necessary_with_floor(worth, 0.7, 1, floor)).all()
    assert 1 - filled.mean() >= 0.7 - 1e-9


def test_it_takes_fewer_cycles() -> None:
    worth, shape, chip = importance(), Shape(3, 65), Hardware()
    free, filled = allocated_mask(worth, 0.7, 1), fill_lanes(worth, 0.7, 1, chip.group_lines)
    cycles = [estimate(keep, token_order(keep, 64), shape, chip).attention.sum() for keep in (free, filled)]
    assert cycles[1] < 0.95 * cycles[0]


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("tokens", [2, 3, 9, 20])
def test_small_masks_with_any_prefix(tokens: int, prefix: int) -> None:
    worth = importance((1, 2, tokens, tokens))
    for sparsity in (0.0, 0.05):
        keep = fill_lanes(worth, sparsity, prefix, 8) if _possible(worth, prefix, sparsity) else None
        assert keep is None or keep.any(axis=-1).all()
        assert keep is None or (keep[..., :prefix].all() and keep[..., :prefix, :].all())
        assert keep is None or np.count_nonzero(keep) <= round((1 - sparsity) * keep.size)


def _possible(worth: Importance, prefix: int, sparsity: float) -> bool:
    return np.count_nonzero(necessary_entries(worth, prefix)) <= round((1 - sparsity) * worth.size)


def test_a_budget_below_a_parcel_of_every_key() -> None:
    """Parcels are left in part, and the sparsity is kept."""
    worth = importance()
    keep = fill_lanes(worth, 0.93, 1, 16)
    assert np.count_nonzero(keep) <= round(0.07 * keep.size)
    assert (keep >= necessary_entries(worth, 1)).all()
    with pytest.raises(VitcodError, match=r"--sparsity 0\.98 can't be reached"):
        fill_lanes(worth, 0.98, 1, 8)


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    worth = importance()
    attention = np.full(worth.shape, 1 / worth.shape[-1], dtype=np.float32)
    write_attention_map(tmp_path / "map.safetensors", AttentionMap(attention, 5, {"num_prefix_tokens": 1}, worth))
    words = ["gen-mask", "--attn-map", str(tmp_path / "map.safetensors"), "--sparsity", "0.7", "--lanes", "8"]
    cli(*words, "--allocate", "--output", str(tmp_path / "m.safetensors"))
    mask = read_mask(tmp_path / "m.safetensors")
    assert np.array_equal(mask.keep, fill_lanes(worth, 0.7, 1, 8))
    assert mask.info["lanes"] == 8
    assert "--lanes is an option of --allocate" in cli(*words, "--output", str(tmp_path / "n.safetensors")).error
