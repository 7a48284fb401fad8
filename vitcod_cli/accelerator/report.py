"""What ``vitcod simulate`` found, as lines of at most 80 columns."""

from __future__ import annotations

import textwrap

from vitcod_cli.accelerator.estimate import Estimate
from vitcod_cli.accelerator.hardware import Hardware
from vitcod_cli.accelerator.published import PublishedCycles
from vitcod_cli.accelerator.run import Simulation
from vitcod_cli.accelerator.sweep import OF_MASKS, OF_MODELS, Row
from vitcod_cli.settings import options_of

WIDTH = 80
NOT_THE_PAPERS = (
    "These are estimates, and ratios between estimates made alike. They are not the",
    "paper's factors, whose baselines were never published.",
)


def simulation_lines(simulation: Simulation) -> list[str]:
    """Blocks, totals beside those of the baselines, and what follows."""
    found = simulation.found
    return [
        *_chip(found),
        "",
        *_blocks(simulation),
        "",
        *_comparison(simulation),
        "",
        *_limits(simulation),
        *NOT_THE_PAPERS,
    ]


def _chip(found: Estimate) -> list[str]:
    hardware, shape = found.hardware, found.shape
    groups = "1 group" if hardware.groups == 1 else f"{hardware.groups} groups"
    coded = "no auto-encoder" if shape.compressed_heads is None else f"{shape.compressed_heads} of Q and K in DRAM"
    return [
        f"{hardware.lines} lines of {hardware.macs_per_line} MACs in {groups}, {hardware.clock / 1e6:g} MHz, "
        f"{hardware.bandwidth / 1e9:g} GB/s, {hardware.bits} bits",
        f"{shape.heads} heads of {shape.head_dim} channels, {coded}; {shape.num_tokens} tokens",
    ]


def _blocks(simulation: Simulation) -> list[str]:
    found, keep = simulation.found, simulation.mask.keep
    lines = [
        "Cycles of attention",
        "block   kept   Q K^T     A V decode softmax traffic     all  bound    used  load",
    ]
    for block in range(len(keep)):
        kept = found.entries[block].sum() / keep[0].size
        lines.append(
            f"{block:>5} {kept:6.1%} {found.sddmm[block]:7,.0f} {found.spmm[block]:7,.0f} "
            f"{found.decode[block]:6,.0f} {found.softmax[block]:7,.0f} {found.transfer[block]:7,.0f} "
            f"{found.attention[block]:7,.0f}  {found.bound[block]:<7}  {found.utilisation[block]:4.0%} "
            f"{found.load[block].max():5.2f}"
        )
    if simulation.threshold is None:
        lines.append("Dense keys: as the file says. load: of the most loaded head, over the mean.")
    else:
        lines.append(
            f"Dense keys: those that more than {simulation.threshold} queries keep. load: of the most loaded"
        )
        lines.append("head, over the mean.")
    return lines


def _comparison(simulation: Simulation) -> list[str]:
    ours = simulation.found.totals()
    lines = [
        "                        attention             all blocks        this mask faster",
        "                    cycles      us     MB        us     MB     mJ attent.   all",
    ]
    for name, other in {"this mask": simulation.found, **simulation.baselines}.items():
        totals = other.totals()
        attention = totals["attention_cycles"] / ours["attention_cycles"]
        whole = totals["cycles"] / ours["cycles"]
        parts = [totals[f"{part}seconds"] * 1e6 for part in ("attention_", "")]
        megabytes = [totals[f"{part}bytes"] / 1e6 for part in ("attention_", "")]
        lines.append(
            f"{name:<15} {totals['attention_cycles']:10,.0f} {_figure(parts[0]):>7} {_figure(megabytes[0]):>6} "
            f"{_figure(parts[1]):>9} {_figure(megabytes[1]):>6} {_figure(totals['energy'] * 1e3):>6} "
            f"{attention:8.2f} {whole:5.2f}"
        )
    return lines


def _figure(number: float) -> str:
    """Four digits or so."""
    digits = 3 if number < 10 else 2 if number < 100 else 1 if number < 1000 else 0
    return f"{number:,.{digits}f}"


def _limits(simulation: Simulation) -> list[str]:
    dense = simulation.baselines["dense"].totals()
    share, macs = dense["attention_share"], dense["attention_macs"] / dense["macs"]
    return [
        f"Attention is {share:.1%} of the dense model's time here, {macs:.1%} of its arithmetic:",
        f"attention alone can make the model at most {1 / (1 - share):.2f} times as fast.",
    ]


def published_lines(cycles: PublishedCycles) -> list[str]:
    """The parts that the published program prints, and its totals."""
    lines = [
        "Cycles of the published program, head 0 of each block",
        "       dense   load Q K      decode   Q K^T          load V        A V",
        "block  keys  dense sparse dense sparse dense sparse dense  sparse dense sparse",
    ]
    for index, block in enumerate(cycles.blocks):
        lines.append(
            f"{index:>5} {block.global_tokens:>5} {block.dense_load_qk:6} {block.sparse_load_qk:6} "
            f"{block.dense_decode:5} {block.sparse_decode:6} {block.dense_sddmm:5} {block.sparse_sddmm:6} "
            f"{block.dense_load_v:5} {block.sparse_load_v:7g} {block.dense_spmm:5} {block.sparse_spmm:6}"
        )
    totals = cycles.totals
    lines += [
        "",
        f"loads {totals['preload']:,.10g}, decoding {totals['decode']:,.10g}, products {totals['compute']:,.10g}",
        f"attention     {totals['attention']:>12,.10g} cycles  {totals['attention'] / 500:10,.1f} us",
        f"linear layers {totals['linear']:>12,.10g} cycles  {totals['linear'] / 500:10,.1f} us",
        "It reproduces that program, not the paper's factors, whose baselines were never",
        "published. docs/accelerator.md says what is odd about it.",
    ]
    return lines


def sweep_lines(rows: list[Row]) -> list[str]:
    """A line for each combination; where it would be too long, its values and then its figures."""
    keys = [key for key in rows[0] if key in {*options_of(Hardware), *OF_MODELS, *OF_MASKS}]
    table = [[*keys, "attention us", "all us", "MB", "used", "mJ"]]
    for row in rows:
        figures = [f"{row['attention_seconds'] * 1e6:,.1f}", f"{row['seconds'] * 1e6:,.1f}"]
        figures += [f"{row['bytes'] / 1e6:.2f}", f"{row['utilisation']:.0%}", f"{row['energy'] * 1e3:.3f}"]
        table.append([*(str(row[key]) for key in keys), *figures])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    if sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        return _sweep_records(table, len(keys))
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]


def _sweep_records(table: list[list[str]], keys: int) -> list[str]:
    names, lines = table[0], []
    for row in table[1:]:
        values = " ".join(f"{name}={value}" for name, value in zip(names[:keys], row[:keys], strict=True))
        figures = ", ".join(f"{name} {figure}" for name, figure in zip(names[keys:], row[keys:], strict=True))
        lines += [*textwrap.wrap(values, WIDTH, break_on_hyphens=False), f"    {figures}"]
    return lines
