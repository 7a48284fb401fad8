"""Attention under a fixed mask that leaves pruned products out, planned ahead: for inference on a CPU.

A mask is the same for every image, so what can be skipped is known before the first one. Queries of a head
that look at much the same keys are put into one cluster; a cluster needs only the keys that one of its
queries keeps. The rows of Q, K and V that the clusters need are gathered at once, then each cluster is one
call of fused attention, small and dense. Whether this beats fused attention over all keys is a matter of
size and mask: it does from some 500 tokens on; at 197 the gathering costs more than it saves
(docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitcod_cli.model.kernels.base import Heads, additive_mask
from vitcod_cli.model.kernels.fused import FusedKernel

LOGIT, ROW, CALL = 1.5, 15.0, 40_000.0
"""What a cluster costs, in logits of fused attention over all keys: each of its logits, each row of Q, K and V
that is gathered or put back, and the call, whose price the images of a batch share. Measured on a CPU with
AVX-512 in float32 (benchmarks/sparse_attention.py); in bfloat16 a plan saves more than they say."""

MASKED = 1.1
"""What a logit of fused attention over all keys costs under a mask, in the same unit."""

BATCH = 4
"""Images that share a call while clusters are sought; with fewer, fewer and larger clusters would be best."""

SLICE_BYTES = 16 * 2**20
"""A batch is computed in slices whose gathered rows take about so much: more falls out of the cache."""

LANES = 16
"""Clusters have a multiple of so many keys, where there are as many: fused attention takes up to half as long
as with a few keys over."""

MIN_TOKENS = 400
"""With fewer no mask has been seen to pay, and no plan is sought."""


@dataclass(frozen=True)
class Cluster:
    """Queries of one head that are computed together.

    Attributes:
        queries: int64 [q], ascending token indices. keys: int64 [k], those that one of the queries keeps,
            and a few more to make their number round.
    """

    queries: NDArray[np.int64]
    keys: NDArray[np.int64]


class AttentionPlan:
    """How to compute one layer's masked attention without most of the products that its mask prunes.

    Args:
        keep: bool [H, N, N], on the CPU. Every row keeps a key.
        clusters: for each head, clusters that have every query once.
        bias: what is added to the logits beside the mask, [H, N, N], or None.
        dtype: of Q, K and V.

    Attributes:
        keep, clusters, bias, dtype: as given.
        position: int64 [N*H], where in the clusters' rows, one after the other, each token's heads are.
        least_batch: images in a batch from which on it is expected to beat fused attention over all keys;
            may be infinite. By the numbers, not measured, so that two runs compute the same.
    """

    def __init__(
        self,
        keep: Tensor,
        clusters: list[list[Cluster]],
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.keep, self.clusters, self.bias, self.dtype = keep, clusters, bias, dtype
        self.num_heads, self.num_tokens = keep.shape[:2]
        rows: list[NDArray[np.int64]] = []
        self._sizes: list[tuple[int, int]] = []
        self._masks: list[Tensor | None] = []
        position = np.empty((self.num_tokens, self.num_heads), dtype=np.int64)
        done = 0
        for head, own in enumerate(clusters):
            for cluster in own:
                # Rows of qkv [N, 3, H, d] as one list: token n of part p and head h is row (3n + p) H + h.
                for part, tokens in enumerate((cluster.queries, cluster.keys, cluster.keys)):
                    rows.append((3 * tokens + part) * self.num_heads + head)
                self._sizes.append((len(cluster.queries), len(cluster.keys)))
                self._masks.append(self._added(head, cluster))
                position[cluster.queries, head] = done + np.arange(len(cluster.queries))
                done += len(cluster.queries)
        self.least_batch = self._least_batch()
        self._rows = torch.from_numpy(np.concatenate(rows))
        self.position = torch.from_numpy(position.ravel())

    def _added(self, head: int, cluster: Cluster) -> Tensor | None:
        """What is added to the logits of a cluster, [q, k]; None: nothing."""
        queries, keys = torch.from_numpy(cluster.queries), torch.from_numpy(cluster.keys)
        kept = self.keep[head, queries][:, keys]
        if self.bias is None:
            return None if bool(kept.all()) else additive_mask(kept, self.dtype)
        return additive_mask(kept, self.dtype).add_(self.bias[head, queries][:, keys])

    @property
    def products(self) -> float:
        """Share of the logits that is computed."""
        return sum(q * k for q, k in self._sizes) / (self.num_heads * self.num_tokens**2)

    def _least_batch(self) -> float:
        queries, keys = np.array(self._sizes, dtype=np.float64).T
        spare = MASKED * self.num_heads * self.num_tokens**2 - _costs(queries, keys, math.inf).sum()
        return math.ceil(CALL * len(self._sizes) / spare) if spare > 0 else math.inf

    def __call__(self, qkv: Tensor) -> Tensor:
        """Attention of the projected tokens ``qkv`` [B, N, 3*H*d]; returns [B, N, H*d]."""
        image_bytes = qkv.itemsize * len(self._rows) * qkv.shape[-1] // (3 * self.num_heads)
        images = max(SLICE_BYTES // image_bytes, BATCH)
        parts = [self._attend(part) for part in qkv.tensor_split(math.ceil(len(qkv) / images))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, tokens, width = qkv.shape
        gathered = _take(qkv.view(batch, -1, width // (3 * self.num_heads)), self._rows)
        attended, start = [], 0
        for (queries, keys), mask in zip(self._sizes, self._masks, strict=True):
            part = gathered[:, None, start : start + queries + 2 * keys]
            q, k, v = torch.split(part, [queries, keys, keys], dim=2)
            attended.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0])
            start += queries + 2 * keys
        return _take(torch.cat(attended, dim=1), self.position).view(batch, tokens, -1)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of every image: x [B, R, d] at ``rows`` int64 [r]; returns [B, r, d]."""
    offsets = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1])
    # An embedding is a gather; it takes half as long as index_select.
    return F.embedding(offsets[:, None] + rows, x.reshape(-1, x.shape[-1]))


class PlannedKernel(FusedKernel):
    """Follows a plan where it is expected to pay, for inference on a CPU; else fused attention."""

    def __init__(self, plan: AttentionPlan, additive: Tensor | None = None) -> None:
        super().__init__(additive)
        self.plan = plan

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""
        if not self.training and self._suits(heads.q):
            return self.plan(heads.packed_rows().to(self.plan.dtype))
        return super().forward(heads, keep, dropout)

    def _suits(self, q: Tensor) -> bool:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
        plain = q.device.type == "cpu" and self.plan.dtype == dtype
        return plain and len(q) >= self.plan.least_batch


def plan_attention(
    keep: Tensor, grid: tuple[int, int], bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> AttentionPlan | None:
    """The plan for a layer's mask, or None where it is not expected to pay at any batch size.

    Args:
        keep: bool [H, N, N], on the CPU; True = this query may look at this key.
        grid: patches along height and width; tokens before the patches are class and register tokens.
        bias: what is added to the logits beside the mask, [H, N, N], or None.
        dtype: of Q, K and V.
    """
    if keep.shape[-1] < MIN_TOKENS:
        return None
    plan = AttentionPlan(keep, [find_clusters(head, grid) for head in keep.numpy()], bias, dtype)
    return plan if plan.least_batch < math.inf else None


def find_clusters(keep: NDArray[np.bool_], grid: tuple[int, int]) -> list[Cluster]:
    """Group the queries of one head by the keys that they keep.

    The search starts from queries that keep the very same keys, as those of a tile of ``gen-mask --block`` do, or,
    where these are many groups, from small squares of patches, which look at much the same keys; and it merges the
    two whose union saves most until no merger saves anything.

    Args:
        keep: bool [N, N]. grid: see :func:`plan_attention`.
    """
    squares = _squares(len(keep), grid)
    members = _alike(keep, most=len(squares)) or squares
    sizes = np.array([len(group) for group in members], dtype=np.float64)
    union = np.stack([keep[group].any(axis=0) for group in members]).astype(np.float32)
    shared = union @ union.T  # keys in common; the diagonal has each group's own number
    while len(members) > 1:
        keys = shared.diagonal()
        own = _costs(sizes, keys, BATCH)
        together = _costs(sizes[:, None] + sizes, keys[:, None] + keys - shared, BATCH)
        saved = own[:, None] + own - together
        np.fill_diagonal(saved, -np.inf)
        first, second = sorted(map(int, np.unravel_index(saved.argmax(), saved.shape)))
        if saved[first, second] <= 0:
            break
        members[first] = np.concatenate([members[first], members.pop(second)])
        sizes[first] += sizes[second]
        union[first] = np.maximum(union[first], union[second])
        sizes, union = np.delete(sizes, second), np.delete(union, second, axis=0)
        shared = np.delete(np.delete(shared, second, axis=0), second, axis=1)
        shared[first] = shared[:, first] = union @ union[first]
    return [Cluster(np.sort(group), _padded(row > 0)) for group, row in zip(members, union, strict=True)]


def _costs(queries: NDArray[np.float64], keys: NDArray[np.floating], batch_size: float) -> NDArray[np.float64]:
    """Of clusters of so many queries and keys, for one image of a batch; in logits of fused attention."""
    cost: NDArray[np.float64] = LOGIT * queries * keys + ROW * (2 * queries + 2 * keys) + CALL / batch_size
    return cost


def _padded(wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the keys wanted, and of as many others as make their number a multiple of ``LANES``."""
    missing = -int(wanted.sum()) % LANES
    others = np.flatnonzero(~wanted)[:missing]
    return np.sort(np.concatenate([np.flatnonzero(wanted), others]))


def _alike(keep: NDArray[np.bool_], most: int) -> list[NDArray[np.int64]]:
    """Groups of queries that keep the same keys; none where they are more than ``most``."""
    rows, group = np.unique(np.packbits(keep, axis=1), axis=0, return_inverse=True)
    if len(rows) > most:
        return []
    return [np.flatnonzero(group.ravel() == number) for number in range(len(rows))]


def _squares(tokens: int, grid: tuple[int, int]) -> list[NDArray[np.int64]]:
    """Token indices of the class and register tokens, and of squares of patches, at most 8 x 8 of them."""
    height, width = grid
    prefix = tokens - height * width
    patches = np.arange(prefix, tokens).reshape(grid)
    edge = -(-max(grid) // 8)
    squares = [
        patches[y : y + edge, x : x + edge].ravel() for y in range(0, height, edge) for x in range(0, width, edge)
    ]
    return [np.arange(prefix), *squares] if prefix else squares
