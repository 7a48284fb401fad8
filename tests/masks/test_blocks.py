"""Masks of whole tiles: ``gen-mask --block``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli, MakeMap

from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.mask import Mask, read_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.block_settings import BlockSettings
from vitcod_cli.masks.blocks import Tiles, cut_tokens, map_of_tiles, whole_tiles
from vitcod_cli.masks.budget import worth_of
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.ratio import ratio_mask
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.model.tiles import TokenTiles, token_tiles
from vitcod_cli.reporting import SilentReporter

GRID = (16, 16)


def tiled_map(make_map: MakeMap, grid: tuple[int, int] = GRID, prefix: int = 1, **info: Any) -> AttentionMap:
    """Two blocks of two heads, with an importance that is a rank; the second block's is larger."""
    attention = make_map(2, 2, grid[0] * grid[1] + prefix)
    damage = np.random.default_rng(3).lognormal(sigma=2, size=attention.shape) * [[[[1.0]]], [[[3.0]]]]
    ranks = np.argsort(np.argsort(damage.ravel())).reshape(damage.shape) / damage.size
    config = {"model": "vit", "num_classes": 5, "img_size": [8 * grid[0], 8 * grid[1]]}
    facts = {"num_prefix_tokens": prefix, "model_config": config, **info}
    return AttentionMap(attention, 5, facts, ranks.astype(np.float32))


def make(attention_map: AttentionMap, **values: Any) -> Mask:
    return generate_mask(attention_map, MaskSettings.from_flat(values), SilentReporter())


def tiles_of(attention_map: AttentionMap, prefix: int, block: int, keys: int) -> Tiles:
    settings = BlockSettings(block=block, block_keys=keys)
    return cut_tokens(attention_map.attention.shape[-1], prefix, attention_map.info["model_config"], settings)


def kept_tiles(keep: np.ndarray, queries: TokenTiles, keys: TokenTiles | None = None) -> np.ndarray:
    """The mask as one of tiles [L, H, Q, K], each of which must be whole; slowly, by definition."""
    keys = keys or queries
    small = np.zeros((*keep.shape[:2], len(queries.sizes), len(keys.sizes)), dtype=bool)
    for query, key in np.ndindex(small.shape[2:]):
        part = keep[:, :, queries.of_tokens == query][..., keys.of_tokens == key]
        assert (part.all(axis=(-2, -1)) == part.any(axis=(-2, -1))).all(), "a tile is kept in part"
        small[:, :, query, key] = part.all(axis=(-2, -1))
    return small


METHODS = [{"allocate": True}, {}, {"method": "ratio"}, {"method": "random"}, {"method": "std"}]


@pytest.mark.parametrize("settings", METHODS, ids=str)
@pytest.mark.parametrize("sparsity", [0.5, 0.75])
@pytest.mark.parametrize(("grid", "prefix"), [(GRID, 1), (GRID, 0), ((14, 12), 2), ((11, 13), 0), (GRID, 20)])
@pytest.mark.parametrize("keys", [None, 1, 4])
def test_laws(
    make_map: MakeMap,
    settings: dict[str, Any],
    sparsity: float,
    grid: tuple[int, int],
    prefix: int,
    keys: int | None,
) -> None:
    given = tiled_map(make_map, grid, prefix)
    mask = make(given, block=16, block_keys=keys, sparsity=sparsity, **settings)
    tokens = given.attention.shape[-1]
    small = kept_tiles(
        mask.keep, token_tiles(tokens, grid, 16), token_tiles(tokens, grid, keys or 16, prefix_block=16)
    )
    assert mask.keep.any(axis=-1).all()
    if settings.get("method") != "std":  # which doesn't protect them, as published
        assert mask.keep[..., :prefix].all()
        assert mask.keep[..., :prefix, :].all()
    # The info method finds a cut for all rows: as near as a step of it comes.
    entries = (1 if settings else 8) * 16 * (keys or 16)
    assert abs(sparsity_of(mask.keep) - sparsity) * mask.keep.size <= entries
    assert mask.info["sparsity"] == sparsity_of(mask.keep)
    assert (mask.info["block"], mask.info.get("block_keys")) == (16, keys)
    assert mask.info["empty_tiles"] == 1 - small.mean()


def test_allocated_tiles_are_those_worth_most_of_all_blocks(make_map: MakeMap) -> None:
    given = tiled_map(make_map)
    tiles = token_tiles(257, GRID, 16)
    small = kept_tiles(make(given, block=16, sparsity=0.7, allocate=True).keep, tiles)
    worth = np.array(
        [
            [
                [
                    [worth_of(head[tiles.of_tokens == q][:, tiles.of_tokens == k]).mean() for k in range(17)]
                    for q in range(17)
                ]
                for head in block
            ]
            for block in given.importance  # type: ignore[union-attr]
        ]
    )
    must = worth == worth.max(axis=-1, keepdims=True)
    must[..., 0] = must[..., 0, :] = True
    assert (small >= must).all()
    assert worth[small & ~must].min() >= worth[~small].max()
    kept = small.mean(axis=(1, 2, 3))
    assert kept[1] > 1.5 * kept[0], "the block that matters more keeps more"


def test_ratio_keeps_as_many_tiles_in_each_row_as_of_keys(make_map: MakeMap) -> None:
    given = tiled_map(make_map)
    tiles = tiles_of(given, 1, 16, 16)
    mask = make(given, block=16, method="ratio", ratio=0.7)
    small = map_of_tiles(given, tiles)
    expected = ratio_mask(small.attention, 0.7)
    expected[..., 0] = expected[..., 0, :] = True
    np.testing.assert_array_equal(mask.keep, whole_tiles(expected, tiles))
    assert mask.info["ratio"] == 0.7


@pytest.mark.parametrize("keys", [16, 2, 1])
def test_the_map_of_tiles_by_definition(make_map: MakeMap, keys: int) -> None:
    given = tiled_map(make_map, (6, 6), 2)
    tiles = tiles_of(given, 2, 16, keys)
    small = map_of_tiles(given, tiles)
    assert given.importance is not None
    assert small.importance is not None
    assert small.attention.shape[2:] == (4, {16: 4, 2: 19, 1: 37}[keys])
    np.testing.assert_allclose(small.attention.sum(axis=-1), 1, rtol=1e-5)
    for query, key in np.ndindex(small.attention.shape[2:]):
        of = np.ix_(tiles.queries.of_tokens == query, tiles.keys.of_tokens == key)
        attention, worth = given.attention[1, 0][of], worth_of(given.importance[1, 0][of])
        assert small.attention[1, 0, query, key] == pytest.approx(attention.sum(axis=1).mean(), rel=1e-5)
        assert small.importance[1, 0, query, key] == pytest.approx(worth.mean(), rel=1e-5)


def test_larger_tiles_are_made_of_whole_smaller_ones(make_map: MakeMap) -> None:
    given = tiled_map(make_map)
    keep = make(given, block=64, sparsity=0.5, allocate=True).keep
    kept_tiles(keep, token_tiles(257, GRID, 16))
    with pytest.raises(AssertionError, match="in part"):
        kept_tiles(make(given, sparsity=0.5, allocate=True).keep, token_tiles(257, GRID, 16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block": 48}, "--block must be a power of two, such as 32, not 48"),
        ({"block": 8}, "--block must be between 16 and 1024, not 8"),
        ({"block": 16, "allocate": True, "lanes": 8}, "--lanes .* leave it or --block out"),
        ({"block_for": "cpu", "allocate": True, "lanes": 8}, "--lanes .* leave it or --block-for out"),
        ({"block_keys": 1}, "--block-keys says how many keys a tile of --block has: give that too"),
        ({"block": 16, "block_keys": 3}, "--block-keys must be a power of two, such as 2, not 3"),
        ({"block": 16, "block_keys": 32}, "--block-keys 32 is more than the 16 queries of --block"),
        ({"block": 16, "block_for": "gpu"}, "--block-for says how large tiles are, as --block does"),
        ({"block": 16, "allocate": True, "min_density": 0.02}, "--min-density .* leave it or --block out"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(VitcodError, match=message):
        MaskSettings.from_flat(values)


def test_maps_that_have_no_such_tiles(make_map: MakeMap) -> None:
    given = tiled_map(make_map, (6, 6))
    with pytest.raises(VitcodError, match=r"--block takes 64 queries .* 36 patches; take --block 32 at most"):
        make(given, block=64)
    with pytest.raises(VitcodError, match=r"37 tokens, 0 of them .* make no grid.*--num-prefix-tokens"):
        make(AttentionMap(given.attention), block=16, num_prefix_tokens=0)
    with pytest.raises(VitcodError, match=r"--block takes 16 queries in a tile.* 9 patches; leave it out"):
        make(tiled_map(make_map, (3, 3)), block=16)


@pytest.mark.parametrize("settings", [{"allocate": True}, {}])
def test_a_sparsity_out_of_reach_says_what_can_be_reached(make_map: MakeMap, settings: dict[str, Any]) -> None:
    given = tiled_map(make_map)
    with pytest.raises(
        SparsityError, match=r"--sparsity 0\.97 can't be reached in tiles of 16 queries and 16 keys: .* at most"
    ) as caught:
        make(given, block=16, sparsity=0.97, **settings)
    most = float(str(caught.value).split(" at most")[0].split()[-1])
    assert most > 0.9
    reached = make(given, block=16, sparsity=most, **settings)
    assert sparsity_of(reached.keep) == pytest.approx(most, abs=1e-3)


def test_the_command(cli: Cli, tmp_path: Path, make_map: MakeMap) -> None:
    write_attention_map(tmp_path / "map.safetensors", tiled_map(make_map))
    words = ("gen-mask", "--attn-map", "map.safetensors", "--sparsity", 0.7, "--block", 16)
    outcome = cli(*words, "--allocate")
    assert outcome.out == "allocated_block16_0.70.safetensors\n"
    mask = read_mask(tmp_path / outcome.out.strip())
    empty = 1 - kept_tiles(mask.keep, token_tiles(257, GRID, 16)).mean()
    assert f"Whole tiles of 16 queries and keys: {empty:.1%} are empty." in outcome.err
    figures = json.loads(cli(*words, "--method", "ratio", "--json").out)
    assert (figures["block"], figures["method"]) == (16, "ratio")
    assert 0 < figures["empty_tiles"] < 1
    assert "pruned" in cli("inspect", outcome.out.strip()).out
    error = cli(*words, "--sparsity", 0.999).error
    assert "--sparsity 0.999 can't be reached in tiles of 16 queries and 16 keys" in error


@pytest.mark.parametrize(
    ("patches", "queries"),
    [(16, 16), (196, 16), (576, 16), (1023, 16), (1024, 64), (4096, 64)],
)
def test_how_many_queries_share_keys_on_a_cpu(patches: int, queries: int) -> None:
    assert BlockSettings(block_for="cpu").shape(patches) == (queries, 1)


def test_tiles_for_a_device(cli: Cli, tmp_path: Path, make_map: MakeMap) -> None:
    write_attention_map(tmp_path / "map.safetensors", tiled_map(make_map))
    words = ("gen-mask", "--attn-map", "map.safetensors", "--sparsity", 0.7, "--allocate")
    outcome = cli(*words, "--for", "cpu")
    assert outcome.out == "allocated_cpu_0.70.safetensors\n"
    keep = read_mask(tmp_path / outcome.out.strip()).keep
    same = cli(*words, "--block", 16, "--block-keys", 1)
    assert same.out == "allocated_block16x1_0.70.safetensors\n"
    np.testing.assert_array_equal(read_mask(tmp_path / same.out.strip()).keep, keep)
    small = kept_tiles(keep, token_tiles(257, GRID, 16), token_tiles(257, GRID, 1))
    assert f"Whole tiles of 16 queries and 1 key: {1 - small.mean():.1%} are empty." in outcome.err
    assert "block_keys" in cli("inspect", outcome.out.strip(), "--json").out
    assert cli(*words, "--block-for", "gpu", "--sparsity", 0.4).out.startswith("allocated_gpu_0.3")
    few = tiled_map(make_map, (8, 8))
    write_attention_map(tmp_path / "few.safetensors", few)
    error = cli("gen-mask", "--attn-map", "few.safetensors", "--block-for", "gpu").error
    assert "--block-for takes 128 queries in a tile, and an image has 64 patches" in error


def test_a_ratio_of_tiles_is_not_one_of_entries(cli: Cli, tmp_path: Path, make_map: MakeMap) -> None:
    write_attention_map(tmp_path / "map.safetensors", tiled_map(make_map))
    words = ("gen-mask", "--attn-map", "map.safetensors", "--block", 16, "--method", "ratio", "--ratio", 0.7)
    assert "Not 70.00%: whole tiles are kept. --sparsity 0.7 comes nearest" in cli(*words).err
