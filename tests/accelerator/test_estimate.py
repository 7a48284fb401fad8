"""The estimate: what must hold of any mask and chip, and figures that were worked out apart from it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_masks import Keep, real_masks

from vitcod_cli.accelerator.estimate import Estimate, baselines, estimate, estimate_of, row_packed
from vitcod_cli.accelerator.hardware import Hardware
from vitcod_cli.accelerator.workload import Counts, Shape, linear_layers
from vitcod_cli.artifacts.mask import TokenOrder
from vitcod_cli.masks.polarize import token_order

TINY = Shape(3, 197, 64, 2)
PAPER = Hardware()


def random_mask(seed: int, shape: tuple[int, ...] = (3, 4, 50, 50)) -> Keep:
    """Heads of all kinds: empty ones, full ones, some with dense keys."""
    random = np.random.default_rng(seed)
    density = random.choice([0.0, 0.05, 0.3, 1.0], size=(*shape[:2], 1, 1)) * random.random(
        (*shape[:2], 1, shape[-1])
    )
    keep: Keep = random.random(shape) < density
    keep[..., 0] |= random.random(shape[:-1]) < 0.9
    return keep


def shape_of(keep: Keep, compressed: int | None = None) -> Shape:
    return Shape(keep.shape[1], keep.shape[2], 24, compressed)


def random_chip(seed: int) -> Hardware:
    random = np.random.default_rng(seed)
    groups = int(random.choice([1, 2, 8]))
    return Hardware(
        groups=groups,
        lines=groups * int(random.choice([1, 3, 8])),
        macs_per_line=int(random.choice([1, 5, 8, 64])),
        bandwidth=float(random.choice([1e8, 1e10, 1e12])),
        bits=int(random.choice([4, 8, 16])),
        query_buffer=int(random.choice([100, 10_000])),
        score_buffer=int(random.choice([0, 100, 10_000])),
        sparse_efficiency=float(random.choice([1.0, 0.5, 0.25])),
    )


SEEDS = range(12)


def orders(keep: Keep) -> list[TokenOrder | None]:
    return [None, *(token_order(keep, threshold) for threshold in (0, 10, 25, keep.shape[-1]))]


# -- figures ------------------------------------------------------------------------------------


def test_sddmm_of_the_real_masks(shared: Path) -> None:
    """Worked out for the specification: lane steps of all keys, not polarized, in one group and in eight."""
    expected = {
        "authors_info_0.95": (60064, 13340),
        "ours_al0.90": (58880, 21118),
        "ref_info_0.58": (81344, 48891),
    }
    masks = {name: keep for name, keep, _ in real_masks(shared)}
    for name, figures in expected.items():
        found = [estimate(masks[name], None, TINY, Hardware(groups=groups)).sddmm.sum() for groups in (1, 8)]
        assert found == list(figures)


def test_dense_attention_of_deit_tiny() -> None:
    dense = estimate_of(Counts.full(12, TINY), TINY, Hardware(groups=1))
    assert dense.sddmm.sum() == 226944  # 12 blocks, 3 heads, 197 keys, 4 times 64 lines, 8 steps
    assert dense.macs.sum() == 12 * 2 * 197 * 197 * 64 * 3
    totals = estimate_of(Counts.full(12, Shape(3, 197)), Shape(3, 197), PAPER).totals()
    # 14.6 % of the model's arithmetic, so 1.17 at most: 349,281 of 2,392,437 cycles if no MAC ever idled.
    assert totals["attention_macs"] / PAPER.macs == pytest.approx(349_281, abs=1)
    assert totals["macs"] / PAPER.macs == pytest.approx(2_391_776, abs=1000)
    assert totals["attention_macs"] / totals["macs"] == pytest.approx(0.146, abs=0.0005)


def test_bytes_of_a_small_block() -> None:
    """2 heads of 4 channels, 1 behind the auto-encoder, 5 tokens, 8 bits: counted by hand."""
    shape, keep = Shape(2, 5, 4, 1), np.zeros((1, 2, 5, 5), np.bool_)
    keep[:, :, :, 0] = True
    keep[:, 0, 2, 3] = True
    traffic = estimate(keep, token_order(keep, 4), shape, PAPER).traffic
    assert traffic.queries_keys.tolist() == [2 * 5 * 4]
    assert traffic.values.tolist() == traffic.outputs.tolist() == [5 * 8]
    assert traffic.scores.tolist() == [0]
    # Both heads have 4 sparse keys, so 5 pointers of 2 * 3 bits; one entry of 3 bits.
    assert traffic.index.tolist() == [(2 * 5 * 6 + 3) / 8]
    small = replace(PAPER, query_buffer=7, score_buffer=4)
    traffic = estimate(keep, token_order(keep, 4), shape, small).traffic
    assert traffic.queries_keys.tolist() == [20 + math.ceil(20 / 7) * 20]
    assert traffic.scores.tolist() == [2 * (11 - 4)]


def test_linear_layers_of_deit_tiny() -> None:
    layers = {layer.name: layer for layer in linear_layers(Shape(3, 197), PAPER)}
    assert layers["qkv"].macs == 3 * 197 * 192 * 192
    assert layers["mlp"].macs == 2 * 197 * 192 * 768
    assert layers["encode"].macs == 0
    assert layers["mlp"].bytes == 2 * (192 * 768 + 197 * (192 + 768))
    assert (
        next(layer for layer in linear_layers(TINY, PAPER) if layer.name == "encode").macs == 2 * 197 * 2 * 3 * 64
    )


def test_power_of_the_busy_array() -> None:
    """Without DRAM the default energies stay under the 323.9 mW of the paper's chip when no MAC idles."""
    busy = estimate_of(Counts.full(12, Shape(3, 197)), Shape(3, 197), PAPER)
    energy = busy.energy
    seconds = busy.totals()["macs"] / PAPER.macs / PAPER.clock
    on_chip = (energy["macs"] + energy["sram"]) / seconds + PAPER.static_power
    assert 0.05 < on_chip < 0.3239


# -- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_never_faster_than_array_and_memory(seed: int) -> None:
    keep, chip = random_mask(seed), random_chip(seed)
    shape = shape_of(keep, seed % 3 or None)
    found = [estimate(keep, order, shape, chip) for order in orders(keep)]
    found += [row_packed(keep, shape, chip), *baselines(keep, token_order(keep, 10), shape, chip).values()]
    for one in found:
        assert (one.attention * chip.macs >= one.macs + one.shape.decoding_macs).all()
        assert (one.attention * chip.bytes_per_cycle >= one.traffic.total * (1 - 1e-12)).all()
        assert one.cycles >= one.totals()["macs"] / chip.macs
        assert (one.utilisation <= 1).all()
        assert np.isfinite(list(one.totals().values())).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_more_lines_and_bandwidth_are_never_slower(seed: int) -> None:
    keep, chip = random_mask(seed), random_chip(seed)
    shape = shape_of(keep, seed % 3 or None)
    for order in orders(keep):
        before = np.inf
        for lines in range(chip.groups, 20 * chip.groups, chip.groups):
            cycles = estimate(keep, order, shape, chip.changed(lines=lines)).attention.sum()
            assert cycles <= before
            before = cycles
        before = np.inf
        for bandwidth in (1e7, 3e8, 1e9, 7e10, 1e13):
            cycles = estimate(keep, order, shape, chip.changed(bandwidth=bandwidth)).cycles
            assert cycles <= before
            before = cycles


@pytest.mark.parametrize("seed", SEEDS)
def test_a_smaller_mask_is_never_slower(seed: int) -> None:
    """In the same order of tokens."""
    keep, chip = random_mask(seed), random_chip(seed)
    shape, random = shape_of(keep), np.random.default_rng(seed)
    for order in orders(keep):
        larger, found = keep, estimate(keep, order, shape, chip)
        for _ in range(5):
            smaller = larger & (random.random(keep.shape) < 0.8)
            less = estimate(smaller, order, shape, chip)
            assert (less.attention <= found.attention).all()
            assert (less.traffic.total <= found.traffic.total).all()
            larger, found = smaller, less
        packed = row_packed(larger, shape, chip), row_packed(keep, shape, chip)
        assert (packed[0].attention <= packed[1].attention).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_names_of_tokens_change_nothing(seed: int) -> None:
    keep, chip = random_mask(seed), random_chip(seed)
    shape, tokens = shape_of(keep), np.random.default_rng(seed).permutation(keep.shape[-1])
    other = keep[:, :, tokens][..., tokens]
    for threshold in (None, 0, 10, 25):
        one, two = (
            estimate(mask, None if threshold is None else token_order(mask, threshold), shape, chip)
            for mask in (keep, other)
        )
        assert one.to_dict() == two.to_dict()


def test_a_full_mask_is_no_mask() -> None:
    keep = np.ones((2, 3, 21, 21), dtype=np.bool_)
    shape = shape_of(keep)
    masked = estimate(keep, token_order(keep, 20), shape, PAPER)
    assert masked.to_dict() == estimate_of(Counts.full(2, shape), shape, PAPER).to_dict()
    assert masked.macs.tolist() == [2 * 21 * 21 * 24 * 3] * 2
    assert not masked.traffic.index.any()


@pytest.mark.parametrize(
    "keep", [np.zeros((1, 2, 9, 9), np.bool_), np.ones((1, 1, 1, 1), np.bool_)], ids=["empty", "1"]
)
def test_masks_at_the_edge(keep: Keep) -> None:
    shape = shape_of(keep)
    for order in orders(keep):
        found = estimate(keep, order, shape, PAPER)
        assert np.isfinite(found.attention).all()
        assert found.macs.tolist() == [2 * int(keep.sum()) * 24]
        assert np.isfinite(list(found.totals().values())).all()


def test_polarizing_pays_where_sparse_work_is_slow() -> None:
    """At full efficiency it can't: sparse keys cost their entries, dense ones all queries."""
    keep = random_mask(3, (4, 3, 100, 100))
    keep[:, :, :, :10] = np.random.default_rng(0).random((4, 3, 100, 10)) < 0.7
    shape, order = shape_of(keep), token_order(keep, 50)

    def faster(efficiency: float) -> float:
        chip = PAPER.changed(sparse_efficiency=efficiency)
        found: Estimate = estimate(keep, order, shape, chip)
        return float(estimate(keep, None, shape, chip).attention.sum() / found.attention.sum())

    assert faster(1.0) <= 1.001
    assert faster(0.25) > 1.2


def test_no_auto_encoder_moves_more_and_decodes_nothing() -> None:
    keep = random_mask(5)
    order = token_order(keep, 10)
    coded = estimate(keep, order, shape_of(keep, 2), PAPER)
    plain = baselines(keep, order, shape_of(keep, 2), PAPER)["no auto-encoder"]
    assert (plain.traffic.queries_keys == 2 * coded.traffic.queries_keys).all()
    assert not plain.decode.any()
    assert (coded.decode > 0).all()
    assert "no auto-encoder" not in baselines(keep, order, shape_of(keep), PAPER)
