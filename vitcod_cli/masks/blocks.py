"""Masks of whole tiles, for kernels that skip tiles: ``gen-mask --block N``.

A tile is so many queries that lie near each other by as many keys, or by fewer, down to one: queries that share
their keys are all that a kernel needs that gathers keys one by one, as the planned attention of a CPU does.

Every method treats tiles as it treats tokens otherwise. The map is summed up: what the queries of one tile give to
the keys of another on average is the attention of the two, what pruning an entry does on average their importance.
The mask of this small map says which tiles are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.block_settings import BlockSettings
from vitcod_cli.masks.budget import (
    budget,
    fewest_needed,
    most_sparsity,
    necessary_entries,
    worth_of,
)
from vitcod_cli.masks.method import Made, MaskMethod, SparsityError
from vitcod_cli.masks.ranking import Attention, Keep, Part, for_each_part
from vitcod_cli.model.grid import patch_grid
from vitcod_cli.model.tiles import Indices, TokenTiles, token_tiles

TRIES = 8
"""Masks that are made to come as near to a sparsity of entries as tiles can; one does where all are of a size."""


@dataclass(frozen=True)
class Tiles:
    """How an attention matrix is cut: its queries, and its keys; the same prefix tokens together in both."""

    queries: TokenTiles
    keys: TokenTiles

    @property
    def areas(self) -> Indices:
        """int64 [Q, K]: entries of each tile of an attention matrix."""
        return np.outer(self.queries.sizes, self.keys.sizes)

    @property
    def parameters(self) -> dict[str, int]:
        """What a mask's info says of their size."""
        queries, keys = self.queries.block, self.keys.block
        return {"block": queries} if keys == queries else {"block": queries, "block_keys": keys}

    @property
    def num_prefix(self) -> int:
        """Tiles of prefix tokens, the first ones; as many of keys as of queries."""
        return self.queries.num_prefix


def cut_tokens(
    num_tokens: int, num_prefix_tokens: int, config: Mapping[str, Any], settings: BlockSettings
) -> Tiles:
    """The tiles of a model's tokens.

    Args:
        config: of the model; empty where it isn't known.

    Raises:
        VitcodError: if the patches make no grid, or are too few.
    """
    patches = num_tokens - num_prefix_tokens
    grid = patch_grid(patches, config)
    if grid is None:
        raise VitcodError(
            f"{settings.chosen_by} needs to know where the patches are, and {num_tokens} tokens, "
            f"{num_prefix_tokens} of them before the patches, make no grid; check --num-prefix-tokens."
        )
    block, block_keys = settings.shape(patches)
    shape = (grid.rows, grid.columns)
    keys = token_tiles(num_tokens, shape, block_keys, prefix_block=block)
    return Tiles(token_tiles(num_tokens, shape, block), keys)


def map_of_tiles(attention_map: AttentionMap, tiles: Tiles) -> AttentionMap:
    """The map with tiles as its tokens.

    Its attention [L, H, Q, K] is the sum over the keys of one tile, the mean over the queries of another, so that
    rows sum to 1; its importance is the mean over all entries of what they are worth: a budget counts entries.
    """
    attention = _sums(attention_map.attention, tiles, np.asarray)
    attention /= tiles.queries.sizes[:, None]
    importance = attention_map.importance
    if importance is None:
        return AttentionMap(attention, attention_map.num_images, attention_map.info, None)
    worth = _sums(importance, tiles, worth_of)
    worth /= tiles.areas
    return AttentionMap(attention, attention_map.num_images, attention_map.info, worth)


def made_of_tiles(method: MaskMethod, attention_map: AttentionMap, tiles: Tiles, num_prefix: int) -> Made:
    """What ``method`` makes of a map of tiles, at the sparsity of *entries* that it is asked for.

    Tiles of prefix tokens are small, as the last one may be: a share of tiles is another than that of entries.

    Args:
        num_prefix: tiles whose rows and columns are kept.

    Raises:
        SparsityError: if the tiles that must be kept are more than the sparsity leaves.
    """
    if method.wanted is None:
        return method.make(attention_map, num_prefix)
    try:
        return _nearest(method, method.wanted, attention_map, tiles, num_prefix)
    except SparsityError as error:
        raise _out_of_reach(method, method.wanted, attention_map, tiles, num_prefix) from error


def whole_tiles(keep: Keep, tiles: Tiles) -> Keep:
    """The mask of the tokens [L, H, N, N] that a mask of the tiles [L, H, Q, K] comes to."""
    query, key = tiles.queries.of_tokens, tiles.keys.of_tokens
    spread = np.empty((*keep.shape[:2], len(query), len(key)), dtype=np.bool_)
    for head in np.ndindex(keep.shape[:2]):
        spread[head] = keep[head][query][:, key]
    return spread


def _sums(values: Attention, tiles: Tiles, of: Callable[[Attention], NDArray[np.floating]]) -> Attention:
    """Sums over each tile of what ``of`` makes of values [L, H, N, N]: float32 [L, H, Q, K].

    A head at a time: where keys are single ones, all heads together would be another map of float64.
    """
    queries, keys = tiles.queries, tiles.keys
    sums: Attention = np.empty((*values.shape[:2], *tiles.areas.shape), dtype=np.float32)
    for head in np.ndindex(values.shape[:2]):
        own = values[head]
        by_key = np.empty((len(own), len(keys.sizes)), dtype=np.float32)

        def fill(part: Part, own: Attention = own, by_key: NDArray[np.float32] = by_key) -> None:
            rows = of(own[part])[:, keys.order]
            by_key[part] = np.add.reduceat(rows, keys.starts, axis=-1, dtype=np.float64)

        for_each_part(fill, own)
        sums[head] = np.add.reduceat(by_key[queries.order], queries.starts, axis=0, dtype=np.float64)
    return sums


def _nearest(
    method: MaskMethod, sparsity: float, attention_map: AttentionMap, tiles: Tiles, num_prefix: int
) -> Made:
    """The mask of tiles that leaves as many entries as this sparsity, or nearly so."""
    attention, areas = attention_map.attention, tiles.areas
    all_tiles, tile = attention.size, tiles.queries.block * tiles.keys.block
    wanted = budget(_heads(attention) * int(areas.sum()), sparsity)
    prefix = np.zeros(areas.shape, dtype=np.bool_)
    prefix[:num_prefix] = prefix[:, :num_prefix] = True
    count = _heads(attention) * int(np.count_nonzero(prefix))
    count += round((wanted - _heads(attention) * int(areas[prefix].sum())) / tile)
    best: tuple[int, Made] | None = None
    tried: set[int] = set()
    while count not in tried and len(tried) < TRIES:
        tried.add(count)
        made = method.at(1 - min(max(count, 0), all_tiles) / all_tiles).make(attention_map, num_prefix)
        missing = wanted - entries(made.keep, tiles)
        if best is None or abs(missing) < best[0]:
            best = abs(missing), made
        count += round(missing / tile)
    assert best is not None
    return best[1]


def entries(keep: Keep, tiles: Tiles) -> int:
    """How many entries a mask of tiles [L, H, Q, K] keeps."""
    return int((np.count_nonzero(keep, axis=(0, 1)) * tiles.areas).sum())


def _heads(attention: Attention) -> int:
    return int(np.prod(attention.shape[:2]))


def _out_of_reach(
    method: MaskMethod, sparsity: float, attention_map: AttentionMap, tiles: Tiles, num_prefix: int
) -> SparsityError:
    attention, importance = attention_map.attention, attention_map.importance
    if method.name == "allocated" and importance is not None:
        fewest = necessary_entries(importance, num_prefix)
    elif method.name == "info":
        fewest = necessary_entries(attention, num_prefix)
    else:
        fewest = fewest_needed(attention, num_prefix)
    most = most_sparsity(entries(fewest, tiles), _heads(attention) * int(tiles.areas.sum()))
    if sparsity <= most:
        return SparsityError(
            f"--sparsity {sparsity:g} keeps more than the {method.name} method can in tiles of this map; prune "
            "more, or take --method ratio."
        )
    queries, keys = tiles.queries.block, tiles.keys.block
    size = f"{queries} queries and {keys} {'key' if keys == 1 else 'keys'}"
    return SparsityError(
        f"--sparsity {sparsity:g} can't be reached in tiles of {size}: one of every row of tiles and all prefix "
        f"tokens are kept, which leaves {most:.4f} at most; prune less, or take smaller tiles (--block)."
    )
