"""Masks of whole tiles, for kernels that skip tiles: ``gen-mask --block N``.

Every method treats tiles as it treats tokens otherwise. The map is summed up: what the queries of one tile give to
the keys of another on average is the attention of the two, what pruning all their entries does their importance.
The mask of this small map says which tiles are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
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
from vitcod_cli.model.tiles import TokenTiles, token_tiles

TRIES = 8
"""Masks that are made to come as near to a sparsity of entries as tiles can; one does where all are of a size."""


def tiles_of(attention_map: AttentionMap, num_prefix_tokens: int, block: int) -> TokenTiles:
    """The tiles of a map's tokens.

    Raises:
        VitcodError: if the patches make no grid, or are fewer than ``block``.
    """
    tokens = attention_map.attention.shape[-1]
    patches = tokens - num_prefix_tokens
    grid = patch_grid(patches, attention_map.info.get("model_config", {}))
    if grid is None:
        raise VitcodError(
            f"--block needs to know where the patches are, and {tokens} tokens, {num_prefix_tokens} of them "
            "before the patches, make no grid; check --num-prefix-tokens."
        )
    if block > patches:
        most = 1 << (patches.bit_length() - 1)
        way_on = f"take at most {most}" if most >= 16 else "leave it out"
        raise VitcodError(f"--block {block} is more than the {patches} patches of the map; {way_on}.")
    return token_tiles(tokens, (grid.rows, grid.columns), block)


def map_of_tiles(attention_map: AttentionMap, tiles: TokenTiles) -> AttentionMap:
    """The map with tiles as its tokens.

    Its attention [L, H, T, T] is the sum over the keys of one tile, the mean over the queries of another, so that
    rows sum to 1; its importance is the sum over all entries of what they are worth.
    """
    attention = _sums(attention_map.attention, tiles, np.asarray)
    attention /= tiles.sizes[:, None]
    importance = attention_map.importance
    worth = None if importance is None else _sums(importance, tiles, worth_of)
    return AttentionMap(attention, attention_map.num_images, attention_map.info, worth)


def made_of_tiles(method: MaskMethod, attention_map: AttentionMap, tiles: TokenTiles, num_prefix: int) -> Made:
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


def whole_tiles(keep: Keep, tiles: TokenTiles) -> Keep:
    """The mask of the tokens [L, H, N, N] that a mask of the tiles [L, H, T, T] comes to."""
    of_tokens = tiles.of_tokens
    spread = np.empty((*keep.shape[:2], len(of_tokens), len(of_tokens)), dtype=np.bool_)
    for head in np.ndindex(keep.shape[:2]):
        spread[head] = keep[head][of_tokens][:, of_tokens]
    return spread


def _sums(values: Attention, tiles: TokenTiles, of: Callable[[Attention], NDArray[np.floating]]) -> Attention:
    """Sums over each tile of what ``of`` makes of values [L, H, N, N]: float32 [L, H, T, T]."""
    order, starts = tiles.order, tiles.starts
    by_key = np.empty((*values.shape[:-1], len(starts)), dtype=np.float32)

    def fill(part: Part) -> None:
        rows = of(values[part])[:, order]
        by_key[part] = np.add.reduceat(rows, starts, axis=-1, dtype=np.float64)

    for_each_part(fill, values)
    sums: Attention = np.empty((*values.shape[:2], len(starts), len(starts)), dtype=np.float32)
    for head in np.ndindex(values.shape[:2]):
        sums[head] = np.add.reduceat(by_key[head][order], starts, axis=0, dtype=np.float64)
    return sums


def _nearest(
    method: MaskMethod, sparsity: float, attention_map: AttentionMap, tiles: TokenTiles, num_prefix: int
) -> Made:
    """The mask of tiles that leaves as many entries as this sparsity, or nearly so."""
    attention, areas = attention_map.attention, tiles.areas
    all_tiles, tile = attention.size, tiles.block**2
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


def entries(keep: Keep, tiles: TokenTiles) -> int:
    """How many entries a mask of tiles [L, H, T, T] keeps."""
    return int((np.count_nonzero(keep, axis=(0, 1)) * tiles.areas).sum())


def _heads(attention: Attention) -> int:
    return int(np.prod(attention.shape[:2]))


def _out_of_reach(
    method: MaskMethod, sparsity: float, attention_map: AttentionMap, tiles: TokenTiles, num_prefix: int
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
    return SparsityError(
        f"--sparsity {sparsity:g} can't be reached with --block {tiles.block}: a tile of every row of tiles and "
        f"all prefix tokens are kept, which leaves {most:.4f} at most; prune less, or take smaller tiles."
    )
