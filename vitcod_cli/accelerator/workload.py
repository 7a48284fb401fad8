"""What a block asks of the accelerator: steps of its groups of lines, arithmetic, and bytes from and to DRAM.

In Q K^T a group holds a key and computes its scores with as many queries at once as it has lines, so a key that
n queries keep takes ceil(n / lines) * ceil(d / MACs a line) steps. In A V it holds a query, and its lines take as
many of its keys at once. Dense keys are computed for all queries; as these have them in common, no line idles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.accelerator.hardware import Hardware
from vitcod_cli.artifacts.mask import TokenOrder
from vitcod_cli.masks.polarize import Keep, keys_of_queries, queries_of_keys

Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """What a mask doesn't say of its model.

    Attributes:
        compressed_heads: heads that Q and K have behind the auto-encoder; None without one.
        mlp_ratio: hidden channels of the MLP over those of a token.
    """

    heads: int
    num_tokens: int
    head_dim: int = 64
    compressed_heads: int | None = None
    mlp_ratio: float = 4.0

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_dim

    @property
    def projected(self) -> int:
        """Channels of Q, and of K, as they are kept in DRAM."""
        return (self.compressed_heads or self.heads) * self.head_dim

    @property
    def decoding_macs(self) -> int:
        """Multiply-accumulates that bring Q and K back to all heads (as many encode them)."""
        if self.compressed_heads is None:
            return 0
        return 2 * self.num_tokens * self.compressed_heads * self.heads * self.head_dim


@dataclass(frozen=True)
class Counts:
    """A mask as the accelerator's schedule needs it; its entries are not looked at again.

    Attributes:
        queries: int64 [L, H, N]: how many queries keep each key; 0 for dense keys.
        keys: int64 [L, H, N]: how many keys outside the dense ones each query keeps.
        dense: int64 [L, H]: dense keys.
        kept: int64 [L, H]: kept entries, those in dense keys too.
    """

    queries: Steps
    keys: Steps
    dense: Steps
    kept: Steps

    @classmethod
    def of(cls, keep: Keep, order: TokenOrder | None = None) -> Counts:
        """Of a mask [L, H, N, N]; without an order no key is dense."""
        queries, keys = queries_of_keys(keep), keys_of_queries(keep)
        kept = queries.sum(axis=-1)
        if order is None:
            return cls(queries, keys, np.zeros(kept.shape, dtype=np.int64), kept)
        num_tokens = keep.shape[-1]
        is_dense = np.zeros(queries.shape, dtype=np.bool_)
        first = np.arange(num_tokens) < order.global_tokens[..., None]
        np.put_along_axis(is_dense, order.permutation, first, axis=-1)
        in_dense = np.stack(
            [np.count_nonzero(b & d[:, None, :], axis=-1) for b, d in zip(keep, is_dense, strict=True)]
        )
        return cls(np.where(is_dense, 0, queries), keys - in_dense, order.global_tokens.astype(np.int64), kept)

    @classmethod
    def full(cls, blocks: int, shape: Shape) -> Counts:
        """Of no mask: all keys are dense."""
        nothing = np.zeros((blocks, shape.heads, shape.num_tokens), dtype=np.int64)
        heads = np.full((blocks, shape.heads), shape.num_tokens, dtype=np.int64)
        return cls(nothing, nothing, heads, heads * shape.num_tokens)


@dataclass(frozen=True)
class Engine:
    """The work of one engine in one product: steps in all, [L], and those of its longest unit, [L], which one
    group does alone."""

    steps: Steps
    longest: Steps

    def cycles(self, groups: int) -> NDArray[np.float64]:
        """Cycles with so many groups, when units are dealt out evenly; infinite for work without a group."""
        if groups == 0:
            return np.where(self.steps > 0, np.inf, 0.0)
        return np.maximum(-(-self.steps // groups), self.longest).astype(np.float64)


def dense_engine(counts: Counts, shape: Shape, hardware: Hardware) -> Engine:
    """The work on dense keys in either product: all queries of each, whether they keep it or not."""
    one = math.ceil(shape.num_tokens / hardware.group_lines) * steps_of(shape, hardware)
    dense = counts.dense.sum(axis=-1)
    return Engine(dense * one, np.where(dense > 0, one, 0))


def sparse_engine(per_unit: Steps, shape: Shape, hardware: Hardware) -> Engine:
    """The work on keys (or queries) [L, H, N] with so many kept entries each."""
    steps = -(-per_unit // hardware.group_lines) * steps_of(shape, hardware)
    efficiency = hardware.sparse_efficiency
    total, longest = steps.sum(axis=(-2, -1)), steps.max(axis=(-2, -1))
    return Engine(*(np.ceil(part / efficiency).astype(np.int64) for part in (total, longest)))


def steps_of(shape: Shape, hardware: Hardware) -> int:
    """Steps of a line for one product of a query and a key."""
    return math.ceil(shape.head_dim / hardware.macs_per_line)


@dataclass(frozen=True)
class Traffic:
    """Bytes from and to DRAM in a block's attention, each [L]."""

    queries_keys: NDArray[np.float64]
    values: NDArray[np.float64]
    outputs: NDArray[np.float64]
    index: NDArray[np.float64]
    scores: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """All of it."""
        return self.queries_keys + self.values + self.outputs + self.index + self.scores


def attention_traffic(counts: Counts, shape: Shape, hardware: Hardware) -> Traffic:
    """K and V once, Q as often as it is pushed out of its buffer, the sparse part's index, scores that overflow.

    The index (CSC) has a pointer of 2 ceil(log2 N) bits for each sparse key of a head and one more, and a query of
    ceil(log2 N) bits for each entry.
    """
    blocks, byte = len(counts.kept), hardware.bits / 8
    everywhere = np.ones(blocks)
    one = shape.num_tokens * shape.projected * byte
    passes = max(1, math.ceil(one / hardware.query_buffer))
    entries = counts.queries.sum(axis=(-2, -1))
    address = max(1, math.ceil(math.log2(shape.num_tokens))) if shape.num_tokens > 1 else 1
    pointers = np.where(counts.dense < shape.num_tokens, shape.num_tokens - counts.dense + 1, 0).sum(axis=-1)
    overflow = np.maximum(counts.kept.sum(axis=-1) * byte - hardware.score_buffer, 0)
    return Traffic(
        queries_keys=everywhere * one * (1 + passes),
        values=everywhere * shape.num_tokens * shape.width * byte,
        outputs=everywhere * shape.num_tokens * shape.width * byte,
        index=(pointers * 2 * address + entries * address) / 8,
        scores=2.0 * overflow,
    )


@dataclass(frozen=True)
class Linear:
    """A linear layer (or several alike): its arithmetic, and its bytes, where all is moved once."""

    name: str
    macs: int
    bytes: float

    def cycles(self, hardware: Hardware) -> float:
        """As long as the slower of both takes."""
        return max(math.ceil(self.macs / hardware.macs), self.bytes / hardware.bytes_per_cycle)


def linear_layers(shape: Shape, hardware: Hardware) -> Iterator[Linear]:
    """Projections, auto-encoder's encoders and MLP of a block: weights, inputs and outputs are moved once each."""
    n, width, hidden, byte = shape.num_tokens, shape.width, round(shape.mlp_ratio * shape.width), hardware.bits / 8
    stored = 2 * shape.projected + width
    encoders = 0 if shape.compressed_heads is None else 4 * shape.compressed_heads * shape.heads
    yield Linear("qkv", 3 * n * width * width, (3 * width * width + n * (width + stored)) * byte)
    yield Linear("encode", shape.decoding_macs, encoders * byte)
    yield Linear("projection", n * width * width, (width * width + 2 * n * width) * byte)
    yield Linear("mlp", 2 * n * width * hidden, 2 * (width * hidden + n * (width + hidden)) * byte)
