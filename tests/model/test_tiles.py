"""The curve over the patches, and the tiles along it."""

from __future__ import annotations

import numpy as np
import pytest

from vitcod_cli.model.tiles import curve, token_tiles

SIDES = [(1, 1), (1, 9), (7, 1), (2, 2), (3, 3), (5, 4), (8, 8), (9, 13), (14, 14), (16, 3), (37, 37), (24, 32)]


def steps(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """How far each patch of the curve is from the one before it, along height and width."""
    y, x = np.divmod(curve(grid), grid[1])
    return np.abs(np.diff(y)), np.abs(np.diff(x))


@pytest.mark.parametrize("grid", SIDES)
def test_the_curve_visits_each_patch_once_and_goes_to_a_neighbour(grid: tuple[int, int]) -> None:
    assert sorted(curve(grid)) == list(range(grid[0] * grid[1]))
    down, right = steps(grid)
    assert np.maximum(down, right).max(initial=0) <= 1
    assert np.count_nonzero(down + right == 2) <= 1, "at a corner once at most, where a side is odd"


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (64, 64), (24, 32), (6, 10)])
def test_with_even_sides_neighbours_share_a_side(grid: tuple[int, int]) -> None:
    down, right = steps(grid)
    assert (down + right == 1).all()


def test_a_quarter_of_a_square_is_a_square() -> None:
    """What makes a tile of the curve compact."""
    y, x = np.divmod(curve((16, 16)).reshape(4, 64), 16)
    assert {(int(np.ptp(part_y)), int(np.ptp(part_x))) for part_y, part_x in zip(y, x, strict=True)} == {(7, 7)}


@pytest.mark.parametrize(
    ("tokens", "grid", "block", "sizes", "num_prefix"),
    [
        (17, (4, 4), 16, [1, 16], 1),
        (16, (4, 4), 16, [16], 0),
        (197, (14, 14), 64, [1, 64, 64, 64, 4], 1),
        (36 + 20, (6, 6), 16, [16, 4, 16, 16, 4], 2),
    ],
)
def test_prefix_tokens_have_tiles_of_their_own(
    tokens: int, grid: tuple[int, int], block: int, sizes: list[int], num_prefix: int
) -> None:
    tiles = token_tiles(tokens, grid, block)
    assert (tiles.sizes.tolist(), tiles.num_prefix) == (sizes, num_prefix)
    assert sorted(tiles.order) == list(range(tokens))
    prefix = tokens - grid[0] * grid[1]
    assert set(tiles.of_tokens[:prefix]) == set(range(num_prefix))
    assert np.bincount(tiles.of_tokens).tolist() == sizes
    assert tiles.areas.sum() == tokens**2


def test_places_hold_every_token_once_and_fill_up_with_the_last_of_a_tile() -> None:
    tiles = token_tiles(36 + 2, (6, 6), 16)
    tokens, first = tiles.places
    assert len(tokens) == 16 * len(tiles.sizes) == 64
    assert tokens[first].tolist() == tiles.order.tolist()
    assert (tiles.of_tokens[tokens] == np.repeat(np.arange(4), 16)).all()
    assert tokens[~first].tolist() == [1] * 14 + [tiles.order[-1]] * 12


@pytest.mark.parametrize(("tokens", "grid"), [(257, (16, 16)), (36 + 20, (6, 6)), (143, (11, 13))])
def test_larger_tiles_are_made_of_smaller_ones(tokens: int, grid: tuple[int, int]) -> None:
    small, large = token_tiles(tokens, grid, 16), token_tiles(tokens, grid, 64)
    np.testing.assert_array_equal(small.within(large)[small.of_tokens], large.of_tokens)
