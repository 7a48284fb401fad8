"""Split and conquer (HPCA 2023, section IV-A): per head, the keys that many queries keep come first.

They form a dense strip, which an accelerator computes without looking at the mask; the rest is sparse work. A
mask is only looked at in another order, so nothing of it is lost: :class:`TokenOrder` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.mask import Mask, TokenOrder
from vitcod_cli.errors import VitcodError, shown
from vitcod_cli.masks.order_settings import OrderSettings
from vitcod_cli.settings import MOST

Keep = NDArray[np.bool_]
Counts = NDArray[np.int64]

PUBLISHED_THRESHOLD, PUBLISHED_TOKENS = 50, 197
"""The published script calls a key of 197 tokens dense when more than 50 queries keep it."""


def threshold_of(text: str | None, num_tokens: int, efficiency: float) -> int:
    """The number of queries beyond which a key is dense.

    Args:
        text: a number of queries; a share of them (with a point: ``0.25``); ``auto``; None for the published
            50 of 197 tokens, and as large a share of other numbers.
        efficiency: for ``auto``: how much of its time the sparser engine computes something. A dense key
            costs all N queries, a sparse one n_k / efficiency and its index, so a key is dense from
            n_k = efficiency * N.

    Raises:
        VitcodError: if ``text`` is none of these.
    """
    if text is None:
        return PUBLISHED_THRESHOLD * num_tokens // PUBLISHED_TOKENS
    if text == "auto":
        return max(math.ceil(efficiency * num_tokens) - 1, 0)
    value = check_threshold(text)
    if value is None or value > num_tokens:
        raise VitcodError(
            f"--threshold {shown(text)} is more than the {num_tokens} queries of the mask; lower it."
        )
    return value if isinstance(value, int) else int(value * num_tokens)


def check_threshold(text: str | None) -> int | float | None:
    """The number of queries (int) or the share of them (float) that ``text`` is, None for ``auto`` and None.

    Raises:
        VitcodError: if it is none of these.
    """
    if text is None or text == "auto":
        return None
    try:
        value = float(text) if "." in text else int(text)
        if not (text.isascii() and 0 <= value <= (1 if "." in text else MOST)):
            raise ValueError
    except ValueError as error:
        raise VitcodError(
            f"--threshold {shown(text)} is no number of queries, no share of them such as 0.25, and not auto."
        ) from error
    return value


def queries_of_keys(keep: Keep) -> Counts:
    """How many queries keep each key: [L, H, N] of a mask [L, H, N, N]."""
    return np.stack([np.count_nonzero(block, axis=-2) for block in keep])


def keys_of_queries(keep: Keep) -> Counts:
    """How many keys each query keeps: [L, H, N] of a mask [L, H, N, N]."""
    return np.stack([np.count_nonzero(block, axis=-1) for block in keep])


def token_order(keep: Keep, threshold: int) -> TokenOrder:
    """Dense keys, those that more than ``threshold`` queries keep, before all others, as published.

    They come in ascending order, and the token in whose place one is put goes to where that was.

    Args:
        keep: bool [L, H, N, N].
    """
    dense = queries_of_keys(keep) > threshold
    permutation = np.empty(dense.shape, dtype=np.int32)
    for head in np.ndindex(dense.shape[:2]):
        order = list(range(dense.shape[-1]))
        for place, key in enumerate(np.flatnonzero(dense[head]).tolist()):
            order[place], order[key] = order[key], order[place]
        permutation[head] = order
    return TokenOrder(permutation, np.count_nonzero(dense, axis=-1).astype(np.int32))


def reordered(keep: Keep, order: TokenOrder, *, columns_only: bool = False) -> Keep:
    """The mask as the accelerator sees it: R[a, b] = keep[p[a], p[b]], with ``columns_only`` keep[a, p[b]]."""
    moved = np.take_along_axis(keep, order.permutation[..., None, :], axis=-1)
    return moved if columns_only else np.take_along_axis(moved, order.permutation[..., :, None], axis=-2)


def restored(moved: Keep, order: TokenOrder, *, columns_only: bool = False) -> Keep:
    """The inverse of :func:`reordered`."""
    inverse = TokenOrder(order.permutation.argsort(axis=-1).astype(np.int32), order.global_tokens)
    return reordered(moved, inverse, columns_only=columns_only)


@dataclass(frozen=True)
class Split:
    """What polarizing makes of each head; all arrays [L, H].

    Attributes:
        global_tokens: dense keys.
        kept, kept_in_dense: kept entries of the head, and those in dense keys.
        slots: entries that are computed: all queries of dense keys, and the kept entries of the others.
    """

    num_tokens: int
    global_tokens: Counts
    kept: Counts
    kept_in_dense: Counts

    @classmethod
    def of(cls, keep: Keep, order: TokenOrder) -> Split:
        """The split of a mask [L, H, N, N] by its order."""
        counts = queries_of_keys(keep)
        ordered = np.take_along_axis(counts, order.permutation, axis=-1)
        first = np.arange(keep.shape[-1]) < order.global_tokens[..., None]
        return cls(keep.shape[-1], order.global_tokens.astype(np.int64), counts.sum(-1), (ordered * first).sum(-1))

    @property
    def slots(self) -> Counts:
        """See the class."""
        return self.global_tokens * self.num_tokens + self.kept - self.kept_in_dense

    def imbalance(self) -> NDArray[np.float64]:
        """[L]: the slots of a block's most loaded head over those of its mean head, which others wait for."""
        slots = self.slots
        ratio: NDArray[np.float64] = slots.max(axis=-1) / np.maximum(slots.mean(axis=-1), 1)
        return ratio

    def rows(self) -> list[dict[str, float]]:
        """For each block, then for all: dense keys, how full they are, what they hold, what is computed."""
        blocks = [slice(block, block + 1) for block in range(len(self.kept))]
        return [self._row(block) for block in [*blocks, slice(None)]]

    def _row(self, blocks: slice) -> dict[str, float]:
        tokens, kept, dense = (a[blocks] for a in (self.global_tokens, self.kept, self.kept_in_dense))
        strip = int(tokens.sum()) * self.num_tokens
        return {
            "least": int(tokens.min()),
            "most": int(tokens.max()),
            "fill": int(dense.sum()) / strip if strip else 0.0,
            "share": int(dense.sum()) / max(int(kept.sum()), 1),
            "slots": int(self.slots[blocks].sum()) / max(int(kept.sum()), 1),
            "imbalance": float(self.imbalance()[blocks].max()),
        }


@dataclass(frozen=True)
class SparserPart:
    """The kept entries outside the dense strips, column by column (CSC), all heads in one.

    Attributes:
        pointers: int32 [L, H, N + 1]; column c of a head has the entries pointers[c] to pointers[c + 1] of the
            head's part of ``rows``; those of dense keys have none.
        starts: int64 [L, H + 1] flat over all heads [L * H + 1]: where a head's part begins.
        rows: int32 [entries]: the query of each entry, in the order's own numbers.
    """

    pointers: NDArray[np.int32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]


def polarized(mask: Mask, settings: OrderSettings) -> Mask:
    """The mask with its order; its info says the threshold and what moves.

    Raises:
        VitcodError: if the threshold means nothing.
    """
    threshold = threshold_of(settings.threshold, mask.keep.shape[-1], settings.sparse_efficiency)
    info = {**mask.info, "threshold": threshold, "order": settings.order}
    return Mask(mask.keep, info, token_order(mask.keep, threshold))


def sparser_part(keep: Keep, order: TokenOrder, *, columns_only: bool = False) -> SparserPart:
    """The index that hardware reads of the sparse part of a mask [L, H, N, N]."""
    num_tokens = keep.shape[-1]
    pointers = np.zeros((*keep.shape[:2], num_tokens + 1), dtype=np.int32)
    rows: list[NDArray[np.int32]] = []
    for block, head in np.ndindex(keep.shape[:2]):
        one = TokenOrder(order.permutation[None, None, block, head], order.global_tokens[None, None, block, head])
        moved = reordered(keep[None, None, block, head], one, columns_only=columns_only)[0, 0]
        moved[:, : order.global_tokens[block, head]] = False
        columns, entries = np.nonzero(moved.T)
        np.cumsum(np.bincount(columns, minlength=num_tokens), out=pointers[block, head, 1:])
        rows.append(entries.astype(np.int32))
    starts = np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64)
    return SparserPart(pointers, starts, np.concatenate(rows))
