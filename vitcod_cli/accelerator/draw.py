"""A picture of a simulation: roofline, time of each block, load of each head, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitcod_cli.accelerator.run import Simulation
from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.reporting import visible

# Okabe and Ito's colours, which the colour-blind can tell apart.
_PARTS = {"Q Kᵀ": "#0072B2", "A V": "#56B4E9", "decode": "#E69F00", "softmax": "#999999", "traffic": "#D55E00"}
_DOTS = "#0072B2"

_LONGEST_NAME = 40  # with the chip beside it, as wide as the picture


def save_plot(simulation: Simulation, path: str, title: str) -> None:
    """Write the picture; its kind is that of the name.

    Raises:
        VitcodError: if it can't be written.
    """
    figure = draw(simulation, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=150)


def draw(simulation: Simulation, title: str) -> Any:
    """A matplotlib Figure of four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (roofline, blocks), (load, compared) = figure.subplots(2, 2)
    _roofline(roofline, simulation)
    _blocks(blocks, simulation)
    _load(figure, load, simulation)
    _compared(compared, simulation)
    hardware = simulation.found.hardware
    array = f"{hardware.lines} x {hardware.macs_per_line} MACs"
    chip = f"{array}, {hardware.clock / 1e6:g} MHz, {hardware.bandwidth / 1e9:g} GB/s"
    name = title if len(title) <= _LONGEST_NAME else f"{title[: _LONGEST_NAME - 1]}…"
    figure.suptitle(visible(f"{name}: estimate on {chip}"), fontsize=12, parse_math=False)
    return figure


def _roofline(axes: Any, simulation: Simulation) -> None:
    """Attention of each block under what the array and the memory allow."""
    found, hardware = simulation.found, simulation.found.hardware
    dense = simulation.baselines["dense"]
    peak = hardware.macs * hardware.clock / 1e9
    ridge = hardware.macs / hardware.bytes_per_cycle
    points = np.concatenate([found.intensity, dense.intensity])
    points = points[points > 0]  # an empty block has none, and no place on a logarithmic axis
    left, right = min(points.min(), ridge) / 2, max(points.max(), ridge) * 2
    reach = np.array([left, ridge, right])
    axes.plot(reach, np.minimum(reach * hardware.bandwidth / 1e9, peak), color="black", linewidth=1.2)
    rates = [peak]
    for other, color, marker, name in ((dense, "#D55E00", "s", "dense"), (found, _DOTS, "o", "this mask")):
        rate = (other.macs + other.shape.decoding_macs) / other.attention * hardware.clock / 1e9
        axes.scatter(other.intensity, rate, s=28, color=color, marker=marker, label=name, zorder=3, alpha=0.8)
        rates += rate[rate > 0].tolist()
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(min(rates) / 1.5, peak * 1.3))
    axes.set(xlabel="useful MACs a byte", ylabel="useful GMAC/s", title="Roofline: attention of each block")
    axes.legend(loc="lower right", frameon=False)
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        _log_ticks(axis, *limits)
    axes.grid(True, which="both", linewidth=0.3, alpha=0.5)


def _log_ticks(axis: Any, low: float, high: float) -> None:
    """Numbers such as 200 that don't run into each other, however many decades there are."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    decades = np.log10(high / low)
    steps = [1, 1.5, 2, 3, 5, 7] if decades < 1 else [1, 2, 5] if decades < 2 else [1]
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _blocks(axes: Any, simulation: Simulation) -> None:
    """Where the time of each block's attention goes."""
    found = simulation.found
    waiting = np.maximum(found.transfer - found.compute, 0)
    heights = (found.sddmm, found.spmm, found.decode, found.softmax, waiting)
    place, bottom = np.arange(len(found.sddmm)), np.zeros(len(found.sddmm))
    for (name, color), cycles in zip(_PARTS.items(), heights, strict=True):
        if not cycles.any():
            continue
        height = cycles / found.hardware.clock * 1e6
        axes.bar(place, height, bottom=bottom, color=color, label=name)
        bottom = bottom + height
    axes.set(xlabel="block", ylabel="µs", title="Time of attention", xticks=_ticks(len(place)))
    axes.margins(y=0.15)  # a line of its own for the legend: blocks that are alike leave no corner free
    axes.legend(
        loc="upper center", ncols=len(_PARTS), frameon=False, fontsize=9, columnspacing=1, handlelength=1.2
    )


def _load(figure: Any, axes: Any, simulation: Simulation) -> None:
    """Kept entries of each head over the mean head of its block: an even block has ones."""
    from matplotlib.colors import TwoSlopeNorm

    load = simulation.found.load
    norm = TwoSlopeNorm(1.0, 0.0, max(float(load.max()), 1.5))
    image = axes.imshow(load.T, cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
    axes.set(xlabel="block", ylabel="head", title="Kept entries over those of the block's mean head")
    axes.set(xticks=_ticks(load.shape[0]), yticks=_ticks(load.shape[1]))
    figure.colorbar(image, ax=axes)


def _compared(axes: Any, simulation: Simulation) -> None:
    """Attention's time beside that of the baselines, all blocks together."""
    from matplotlib.ticker import EngFormatter

    shown = {"this mask": simulation.found, **simulation.baselines}
    times = [float(one.attention.sum()) / one.hardware.clock for one in shown.values()]
    bars = axes.barh(list(shown), times, color=[_DOTS, *["#999999"] * (len(shown) - 1)])
    axes.bar_label(bars, labels=[f" {EngFormatter('s', places=2)(time)}" for time in times])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.set(title="Attention, all blocks")


def _ticks(count: int) -> range:
    """At most a dozen or so."""
    return range(0, count, -(-count // 16))
