"""How long an image takes on the accelerator: an estimate, whose assumptions ``docs/accelerator.md`` lists.

Every block waits for the one before it. Within one, traffic overlaps with computation; the softmax does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.accelerator.hardware import Hardware
from vitcod_cli.accelerator.workload import (
    Counts,
    Engine,
    Linear,
    Shape,
    Traffic,
    attention_traffic,
    dense_engine,
    linear_layers,
    sparse_engine,
)
from vitcod_cli.artifacts.mask import TokenOrder
from vitcod_cli.masks.polarize import Keep

Cycles = NDArray[np.float64]

SRAM_REUSE = 8
"""How often a value that a linear layer reads from a buffer is used: by the lines of a group, say."""


@dataclass(frozen=True)
class Estimate:
    """Cycles, bytes and arithmetic of one image; arrays have an entry for each block.

    Attributes:
        sddmm, spmm: cycles of Q K^T and A V.
        decode: cycles in which Q and K leave the auto-encoder, on the whole array.
        softmax: cycles of the softmax.
        dense_groups: groups of lines that work on dense keys; all of them: before they work on the others.
        entries: int64 [L, H]: kept entries of each head.
        load: float64 [L, H]: kept entries of each head over those of the block's mean head.
    """

    shape: Shape
    hardware: Hardware
    sddmm: Cycles
    spmm: Cycles
    decode: Cycles
    softmax: Cycles
    dense_groups: NDArray[np.int64]
    traffic: Traffic
    entries: NDArray[np.int64]
    linear: tuple[Linear, ...]

    @property
    def load(self) -> Cycles:
        """See the class."""
        load: Cycles = self.entries / np.maximum(self.entries.mean(axis=-1, keepdims=True), 1)
        return load

    @property
    def compute(self) -> Cycles:
        """Cycles of the array in a block's attention."""
        return self.sddmm + self.spmm + self.decode

    @property
    def transfer(self) -> Cycles:
        """Cycles of a block's attention traffic."""
        return self.traffic.total / self.hardware.bytes_per_cycle

    @property
    def attention(self) -> Cycles:
        """Cycles of a block's attention."""
        return np.maximum(self.compute, self.transfer) + self.softmax

    @property
    def bound(self) -> list[str]:
        """What each block waits for: ``compute`` or ``traffic``."""
        return ["compute" if waits else "traffic" for waits in self.compute >= self.transfer]

    @property
    def macs(self) -> NDArray[np.int64]:
        """Useful multiply-accumulates of a block's two products: only kept entries count."""
        macs: NDArray[np.int64] = 2 * self.entries.sum(axis=-1) * self.shape.head_dim
        return macs

    @property
    def utilisation(self) -> Cycles:
        """Useful multiply-accumulates over those that the array could do in the time of a block's attention."""
        return (self.macs + self.shape.decoding_macs) / (self.attention * self.hardware.macs)

    @property
    def intensity(self) -> Cycles:
        """Useful multiply-accumulates of a block's attention for each byte."""
        return (self.macs + self.shape.decoding_macs) / self.traffic.total

    @property
    def linear_cycles(self) -> float:
        """Cycles of all linear layers of all blocks."""
        return len(self.sddmm) * sum(layer.cycles(self.hardware) for layer in self.linear)

    @property
    def cycles(self) -> float:
        """Of the image."""
        return float(self.attention.sum()) + self.linear_cycles

    @property
    def energy(self) -> dict[str, float]:
        """Joules by part: MACs, buffers, DRAM, and what is drawn all the time."""
        hardware, shape, blocks = self.hardware, self.shape, len(self.sddmm)
        byte = hardware.bits / 8
        linear_macs = blocks * sum(layer.macs for layer in self.linear) + blocks * shape.decoding_macs
        attention_macs = int(self.macs.sum())
        dram = float(self.traffic.total.sum()) + blocks * sum(layer.bytes for layer in self.linear)
        # An entry reads a query and a value, is written and read twice (as score and probability).
        entries = int(self.entries.sum()) * (2 * shape.head_dim + 4) * byte
        sram = entries + 2 * linear_macs * byte / SRAM_REUSE + dram
        return {
            "macs": (linear_macs + attention_macs) * hardware.mac_energy * 1e-12,
            "sram": sram * hardware.sram_energy * 1e-12,
            "dram": dram * hardware.dram_energy * 1e-12,
            "static": self.cycles / hardware.clock * hardware.static_power,
        }

    def totals(self) -> dict[str, float]:
        """Of the image: cycles and seconds, of attention alone too, arithmetic, bytes, energy."""
        blocks, attention = len(self.sddmm), float(self.attention.sum())
        macs = int(self.macs.sum()) + blocks * (self.shape.decoding_macs + sum(x.macs for x in self.linear))
        return {
            "attention_cycles": attention,
            "attention_seconds": attention / self.hardware.clock,
            "attention_bytes": float(self.traffic.total.sum()),
            "attention_macs": int(self.macs.sum()) + blocks * self.shape.decoding_macs,
            "cycles": self.cycles,
            "seconds": self.cycles / self.hardware.clock,
            "bytes": float(self.traffic.total.sum()) + blocks * sum(layer.bytes for layer in self.linear),
            "macs": macs,
            "utilisation": macs / (self.cycles * self.hardware.macs),
            "attention_share": attention / self.cycles,
            "energy": sum(self.energy.values()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, block by block and in all."""
        names = ("sddmm", "spmm", "decode", "softmax", "transfer", "attention", "macs", "utilisation", "intensity")
        blocks = {name: getattr(self, name).tolist() for name in (*names, "dense_groups", "load")}
        return {
            "blocks": {**blocks, "bytes": self.traffic.total.tolist(), "bound": self.bound},
            "linear": {layer.name: layer.cycles(self.hardware) for layer in self.linear},
            "energy": self.energy,
            "totals": self.totals(),
        }


def estimate(keep: Keep, order: TokenOrder | None, shape: Shape, hardware: Hardware) -> Estimate:
    """The estimate of a mask [L, H, N, N], polarized by ``order``, or as it is."""
    return estimate_of(Counts.of(keep, order), shape, hardware)


def estimate_of(counts: Counts, shape: Shape, hardware: Hardware) -> Estimate:
    """As :func:`estimate`, of a mask that is counted already."""
    dense = dense_engine(counts, shape, hardware)
    keys, rows = (sparse_engine(units, shape, hardware) for units in (counts.queries, counts.keys))
    return _estimate(counts, shape, hardware, *_divided(dense, keys, rows, hardware.groups))


def row_packed(keep: Keep, shape: Shape, hardware: Hardware) -> Estimate:
    """Without polarizing, both products by rows, the kept entries of a row packed into the lines of a group.

    The way of Sanger (MICRO 2021) on this hardware.
    """
    counts = Counts.of(keep)
    rows = sparse_engine(counts.keys, shape, hardware).cycles(hardware.groups)
    return _estimate(counts, shape, hardware, np.stack([rows, rows]), np.zeros(len(rows), dtype=np.int64))


def baselines(keep: Keep, order: TokenOrder, shape: Shape, hardware: Hardware) -> dict[str, Estimate]:
    """What the mask is compared with, on the same hardware and simulated alike.

    ``dense``: neither a mask nor an auto-encoder. The others have the mask, and lack one thing each.
    """
    plain = Shape(shape.heads, shape.num_tokens, shape.head_dim, None, shape.mlp_ratio)
    polarized = Counts.of(keep, order)
    found = {
        "dense": estimate_of(Counts.full(len(keep), plain), plain, hardware),
        "not polarized": estimate(keep, None, shape, hardware),
        "row-packed": row_packed(keep, shape, hardware),
    }
    if shape.compressed_heads is not None:
        found["no auto-encoder"] = estimate_of(polarized, plain, hardware)
    return found


def _divided(dense: Engine, keys: Engine, rows: Engine, groups: int) -> tuple[Cycles, NDArray[np.int64]]:
    """Cycles [2, L] of both products under the best division of the groups, and the groups on dense keys [L].

    A division holds for a block, as a compiler would set it: some groups work on dense keys while the others work
    on sparse ones, or all of them on dense keys first.
    """
    products = (keys, rows)
    ways = [
        [np.maximum(dense.cycles(some), sparse.cycles(groups - some)) for sparse in products]
        for some in range(groups)
    ]
    ways.append([dense.cycles(groups) + sparse.cycles(groups) for sparse in products])
    cycles: Cycles = np.array(ways)  # [ways, 2, L]
    best = cycles.sum(axis=1).argmin(axis=0)
    return np.take_along_axis(cycles, best[None, None], axis=0)[0], best


def _estimate(
    counts: Counts, shape: Shape, hardware: Hardware, products: Cycles, division: NDArray[np.int64]
) -> Estimate:
    blocks = len(counts.kept)
    return Estimate(
        shape=shape,
        hardware=hardware,
        sddmm=products[0],
        spmm=products[1],
        decode=np.full(blocks, float(-(-shape.decoding_macs // hardware.macs))),
        softmax=np.ceil(counts.kept.sum(axis=-1) / hardware.softmax_rate),
        dense_groups=division,
        traffic=attention_traffic(counts, shape, hardware),
        entries=counts.kept,
        linear=tuple(linear_layers(shape, hardware)),
    )
