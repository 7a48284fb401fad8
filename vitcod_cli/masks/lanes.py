"""Entries that fill an accelerator's lines: ``gen-mask --allocate --lanes N``.

A group of N lines takes N queries of a key at once in Q K^T, and N keys of a query in A V (``vitcod simulate``). A
key of N + 1 queries costs as much as one of 2 N, so numbers of entries that are no multiples of N leave lines
idle; at 90 % sparsity and N = 8 a fifth of both products. Here they are multiples, as far as that can be had:

1. The budget is spent in parcels of N entries, the next best N of a key, over all keys of all heads; then, head by
   head, in as many parcels of queries.
2. Of all masks with these numbers, the one of greatest worth is a transport problem. Its dual has a price for each
   query and key, and keeps what is worth more than both its prices together; prices are found by turns.
3. Entries beyond a full parcel go if they save a step of both key and query; what is idle then is filled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.masks.budget import Importance, budget, necessary_with_floor, worth_of
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ranking import Keep

ROUNDS = 30
TRIES = 3
BEYOND = 1e9
"""A price that nothing is worth, but what must be kept."""
STEP = 0.5
"""How far a price goes towards its new value in a round: all the way, it would swing."""

Worth = NDArray[np.float64]
Sizes = NDArray[np.int64]


def fill_lanes(
    importance: Importance, sparsity: float, num_prefix_tokens: int, lanes: int, floor: FloorSettings | None = None
) -> Keep:
    """A mask of that sparsity, or a little more, whose keys and queries keep multiples of ``lanes`` entries.

    Prefix rows and columns are kept, the best entry of every row, and what ``floor`` asks for. Where the budget is
    too small for a parcel of every key, the least of all parcels are left in part: they cost their step anyway.

    Args:
        importance: [L, H, N, N], shares of entries that are worth less, as :func:`allocated_mask` takes them.
        sparsity: share of pruned entries among all.

    Raises:
        VitcodError: if the entries that must be kept are more than this sparsity leaves.
    """
    necessary = necessary_with_floor(importance, sparsity, num_prefix_tokens, floor or FloorSettings())
    allowed = planned = budget(importance.size, sparsity)
    for _ in range(TRIES):  # filling what is idle takes more than was planned
        keep = _filled(importance, necessary, num_prefix_tokens, lanes, budget=planned)
        excess = int(np.count_nonzero(keep)) - allowed
        if excess <= 0:
            return keep
        planned -= excess
    ranked = importance[keep & ~necessary]
    keep &= necessary | (importance > np.partition(ranked, excess - 1)[excess - 1])
    return keep


def _filled(importance: Importance, necessary: Keep, num_prefix_tokens: int, lanes: int, *, budget: int) -> Keep:
    keep = necessary.copy()
    parcels = _parcels(importance, keep, num_prefix_tokens, lanes, budget)
    for head in np.ndindex(importance.shape[:2]):
        worth = worth_of(importance[head])
        keep[head] |= _transported(worth, keep[head], parcels[head], num_prefix_tokens, lanes)
        _tidy(keep[head], necessary[head], worth, num_prefix_tokens, lanes=lanes)
    return keep_prefix(keep, num_prefix_tokens)


def _sorted_parcels(worth: Worth, lanes: int) -> Worth:
    """What each next parcel of a key is worth: [parcels, keys] of worth [queries, keys]; the last is not whole."""
    descending = -np.sort(-worth, axis=0)
    starts = np.arange(0, len(worth), lanes)
    parcels: Worth = np.add.reduceat(descending, starts, axis=0)
    return parcels


def _parcels(importance: Importance, keep: Keep, prefix: int, lanes: int, budget: int) -> Sizes:
    """How many parcels each key of each head gets, [L, H, N]; one at least, for prefix queries keep it."""
    found = np.ones(importance.shape[:3], dtype=np.int64)
    columns = keep.shape[-1] - prefix
    spent = int(keep[..., :prefix].sum()) + lanes * columns * int(np.prod(keep.shape[:2]))
    left = (budget - spent) // lanes
    if left <= 0:
        return found
    heads = list(np.ndindex(importance.shape[:2]))
    values = [_sorted_parcels(worth_of(importance[head])[:, prefix:], lanes)[1:] for head in heads]
    flat = np.concatenate([value.ravel() for value in values])
    smallest = np.partition(flat, -min(left, flat.size))[-min(left, flat.size)]
    for head, value in zip(heads, values, strict=True):
        found[head][prefix:] += np.count_nonzero(value >= smallest, axis=0)
    return found


def _transported(worth: Worth, forced: Keep, parcels: Sizes, prefix: int, lanes: int) -> Keep:
    """The mask [N, N] of greatest worth with so many parcels a key, and as many in all for the queries."""
    num_tokens = len(worth)
    inside, must = worth[prefix:, prefix:], forced[prefix:, prefix:]
    keys = np.minimum(parcels[prefix:] * lanes - prefix, num_tokens - prefix)
    total = int(keys.sum()) // lanes
    values = _sorted_parcels(np.where(must, worth.max(), inside).T, lanes)[1:]
    rest = max(total - inside.shape[0], 0)
    queries = np.full(inside.shape[0], lanes)
    if rest:
        smallest = np.partition(values.ravel(), -min(rest, values.size))[-min(rest, values.size)]
        queries += lanes * np.count_nonzero(values >= smallest, axis=0)
    kept = np.zeros_like(forced)
    kept[prefix:, prefix:] = _priced(np.where(must, np.inf, inside), np.maximum(keys, 0), queries)
    return kept


def _priced(worth: Worth, keys: Sizes, queries: Sizes) -> Keep:
    """What is worth more than the prices of its query and key, at which about so many are left of each."""
    price_of_query, price_of_key = np.zeros(len(worth)), np.zeros(worth.shape[1])
    for number in range(ROUNDS):
        step = STEP if number else 1.0
        price_of_key += step * (_price(worth - price_of_query[:, None], keys) - price_of_key)
        price_of_query += step * (_price((worth - price_of_key).T, queries) - price_of_query)
    kept: Keep = worth - price_of_query[:, None] > price_of_key
    return kept


def _price(worth: Worth, counts: Sizes) -> Worth:
    """Between the ``counts``-th largest of each column and the next."""
    descending = -np.sort(-worth, axis=0)
    descending = np.vstack([descending, np.full(worth.shape[1], -BEYOND)])
    places, last = np.arange(worth.shape[1]), len(worth)
    above, below = descending[np.clip(counts - 1, 0, last), places], descending[np.clip(counts, 0, last), places]
    price: Worth = np.where(np.isfinite(above), (above + below) / 2, below)
    return np.where(np.isfinite(price), price, BEYOND)


def _tidy(keep: Keep, necessary: Keep, worth: Worth, prefix: int, *, lanes: int) -> None:
    """Take away what costs a step of its key and its query alone, and fill what is idle then; in place."""
    inside, value = keep[prefix:, prefix:], worth[prefix:, prefix:]
    must = necessary[prefix:, prefix:]
    keys, queries = inside.sum(axis=0) + prefix, inside.sum(axis=1)
    over, single = keys % lanes == 1, (queries % lanes == 1) & (queries > 1)
    for query, key in _in_order(inside & ~must & over & single[:, None], value):
        if keys[key] % lanes == 1 and queries[query] % lanes == 1:
            inside[query, key] = False
            keys[key] -= 1
            queries[query] -= 1
    idle_keys, idle_queries = -keys % lanes, -queries % lanes
    for query, key in _in_order(~inside & (idle_keys > 0) & (idle_queries > 0)[:, None], -value):
        if idle_keys[key] and idle_queries[query]:
            inside[query, key] = True
            idle_keys[key] -= 1
            idle_queries[query] -= 1


def _in_order(chosen: Keep, value: Worth) -> list[list[int]]:
    """Places (query, key) of the chosen entries, the smallest value first."""
    places = np.argwhere(chosen)
    ordered: list[list[int]] = places[np.argsort(value[chosen], kind="stable")].tolist()
    return ordered
