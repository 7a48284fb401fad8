"""The cycles that the published simulator counts (GATECH-EIC/ViTCoD, Hardware/Simulator), to the last digit.

It looks at head 0 of every block alone, and overlaps all traffic with all computation. What it gives are the
program's figures, not the paper's factors, whose baselines were never published. ``docs/accelerator.md`` says what
is odd about it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np

from vitcod_cli.artifacts.mask import TokenOrder
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.polarize import Keep, queries_of_keys

Revision = Literal["v1", "v2", "v3"]
"""January, March and June 2023. v3 has 64 x 64 MACs for attention, and counts V once instead of 1.5 times."""

CLOCK = 500e6
BITS_PER_SECOND = 76.8 * 2**30 * 8
BITS = 8


RATIO = 0.667
"""Compressed heads over heads, as the published README has it."""


@dataclass(frozen=True)
class PublishedChip:
    """The arguments of the published programs.

    Attributes:
        ratio: compressed heads over heads.
        pe_width, pe_height: MAC lines, and MACs of a line; v3's attention takes the width for both.
        embedding: channels of a token; None: heads x head_dim.
    """

    revision: Revision = "v3"
    head_dim: int = 64
    ratio: float = RATIO
    pe_width: int = 64
    pe_height: int = 8
    embedding: int | None = None


@dataclass(frozen=True)
class AttentionCycles:
    """The ten parts of a block that the program prints; of its head 0 the dense keys, and how full the rest is."""

    global_tokens: int
    sparser_density: float
    dense_load_qk: int
    dense_decode: int
    sparse_load_qk: int
    sparse_decode: int
    dense_sddmm: int
    sparse_sddmm: int
    dense_load_v: int
    dense_spmm: int
    sparse_load_v: float
    sparse_spmm: int

    @property
    def preload(self) -> float:
        """Cycles of all loads."""
        return self.dense_load_qk + self.sparse_load_qk + self.dense_load_v + self.sparse_load_v

    @property
    def decode(self) -> int:
        """Cycles in which Q and K are decoded."""
        return self.dense_decode + self.sparse_decode

    @property
    def compute(self) -> int:
        """Cycles of both products, each as long as the slower engine takes."""
        return max(self.dense_sddmm, self.sparse_sddmm) + max(self.dense_spmm, self.sparse_spmm)


@dataclass(frozen=True)
class LinearCycles:
    """A block's linear layers, by their shapes alone."""

    linear_load: int
    linear_encode: int
    linear_compute: int
    ffn_load: int
    ffn_compute: int

    def total(self, blocks: int) -> int:
        """Of ``blocks`` equal ones, each of the two parts as long as the slower of traffic and computation."""
        linear = max(blocks * (self.linear_compute + self.linear_encode), blocks * self.linear_load)
        return linear + max(blocks * self.ffn_compute, blocks * self.ffn_load)


@dataclass(frozen=True)
class PublishedCycles:
    """What both programs say of a model."""

    blocks: list[AttentionCycles]
    linear: LinearCycles

    @property
    def totals(self) -> dict[str, float]:
        """Attention's loads, decoding and computation over all blocks, its cycles, and those of all else."""
        preload, decode, compute = (
            sum(getattr(block, part) for block in self.blocks) for part in ("preload", "decode", "compute")
        )
        linear = self.linear.total(len(self.blocks))
        # Added one by one, as there: from Python 3.12 on, sum() rounds less.
        density = reduce(add, (block.sparser_density for block in self.blocks)) / len(self.blocks)
        attention = max(preload, decode + compute)
        return {
            "mean_sparser_density": density,
            "preload": preload,
            "decode": decode,
            "compute": compute,
            "attention": attention,
            "linear": linear,
            "total": attention + linear,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "blocks": [asdict(block) for block in self.blocks],
            "linear": asdict(self.linear),
            "totals": self.totals,
        }


def published_cycles(keep: Keep, order: TokenOrder, chip: PublishedChip) -> PublishedCycles:
    """The cycles of a polarized mask.

    Args:
        keep: bool [L, H, N, N]; only head 0 counts.

    Raises:
        VitcodError: where the program divides by zero.
    """
    counts = queries_of_keys(keep[:, :1])[:, 0]
    ordered = np.take_along_axis(counts, order.permutation[:, 0], axis=-1)
    heads, num_tokens = keep.shape[1:3]
    blocks = []
    for block, (dense, column) in enumerate(zip(order.global_tokens[:, 0].tolist(), ordered, strict=True)):
        blocks.append(_attention(block, dense, int(column[dense:].sum()), (heads, num_tokens), chip))
    return PublishedCycles(blocks, linear_cycles(heads, num_tokens, chip))


def _load(values: float, share: float = 1.0) -> int:
    """Cycles to move ``values`` with a share of the bandwidth."""
    return math.ceil(values * BITS / (BITS_PER_SECOND * share) * CLOCK)


def _attention(
    block: int, dense: int, entries: int, size: tuple[int, int], chip: PublishedChip
) -> AttentionCycles:
    """``dense`` keys for all queries, and ``entries`` outside them, of one head; ``size``: heads and tokens."""
    (heads, n), width, d = size, chip.pe_width, chip.head_dim
    inner = width if chip.revision == "v3" else chip.pe_height
    compressed = heads * chip.ratio
    token = _load(compressed * d)
    decoder = _load(compressed * d if chip.revision == "v1" else compressed, 1 / heads)
    decode = math.ceil(compressed * d / _nonzero(int(width * inner / heads), block, "the array has no MAC a head"))
    some, rest = int(dense > 0), n - dense
    if chip.revision == "v1":
        dense_load = dense * (token + decoder) + some * n * (token + decoder)
        sparse_load = rest * (token + decoder)
    else:
        dense_load = dense * token + some * (n * token + 2 * decoder)
        sparse_load = rest * token + int(rest > 0) * decoder
    work = _nonzero(entries + dense * n, block, "nothing of its head 0 is kept")
    dense_lines = int(width * (dense * n / work))
    sparse_lines = width - dense_lines
    _nonzero(dense_lines, block, f"its head 0 has too few dense keys ({dense}) for a line")
    _nonzero(sparse_lines, block, "its head 0 has too few entries outside dense keys for a line")
    steps = math.ceil(d / (inner / heads))
    dense_macs = _nonzero(int(dense_lines * inner / heads), block, "its dense part has less than a MAC a head")
    sparse_macs = _nonzero(int(sparse_lines * inner / heads), block, "its sparse part has less than a MAC a head")
    value = _load(heads * d)
    return AttentionCycles(
        global_tokens=dense,
        sparser_density=entries / (n * rest),
        dense_load_qk=dense_load,
        dense_decode=decode * (dense + some * n),
        sparse_load_qk=sparse_load,
        sparse_decode=decode * rest,
        dense_sddmm=dense * math.ceil(n / dense_lines) * steps,
        sparse_sddmm=math.ceil(entries / sparse_lines) * steps,
        dense_load_v=dense * value,
        dense_spmm=math.ceil(n * d * dense / dense_macs),
        sparse_load_v=rest * value * (1 if chip.revision == "v3" else 1.5),
        sparse_spmm=math.ceil(entries * d / sparse_macs),
    )


def _nonzero(number: int, block: int, reason: str) -> int:
    if not number:
        raise VitcodError(
            f"The published program has no figure for this mask, it divides by zero: in block {block} {reason}. "
            "Leave out --model published for an estimate of any mask."
        )
    return number


def linear_cycles(heads: int, num_tokens: int, chip: PublishedChip) -> LinearCycles:
    """The linear layers of a block, as the program has them: its FFN weights cost nothing below 512 tokens."""
    n, d, array = num_tokens, chip.head_dim, chip.pe_width * chip.pe_height
    width = heads * d if chip.embedding is None else chip.embedding
    compressed = heads * chip.ratio
    a_head = _nonzero(int(array / heads), 0, "the array has no MAC a head")
    a_compressed = _nonzero(int(array / compressed), 0, "the array has no MAC a compressed head")
    encoder = (
        2 * n * _load(heads * d, 1 / compressed) if chip.revision == "v1" else 2 * _load(heads, 1 / compressed)
    )
    stores = 2 * n * _load(d, 1 / compressed) + n * _load(d, 1 / heads)
    return LinearCycles(
        linear_load=3 * d * _load(heads * width) + encoder + stores + n // a_head * width * _load(d, 1 / heads),
        linear_encode=2 * n * math.ceil(heads * d // a_compressed),
        linear_compute=3 * n * (width * d // a_head) + n * width * d // a_head,
        ffn_load=n // array * (4 * width * _load(width) + width * _load(4 * width)),
        ffn_compute=2 * (4 * n * width * width // array),
    )
