"""Sensitivity to pruning: a curve over the blocks for each sparsity, or a map of the heads for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.plots.canvas import FONT
from vitcod_cli.plots.draw import COLORS
from vitcod_cli.plots.files import save_figure
from vitcod_cli.reporting import visible

_GREY = "#555555"
_PANELS = 4
"""Of heads, side by side."""
_RANGE = 1e-3
"""Of the largest change, from where on heads have one colour: those that matter are to be told apart."""
_SMALLEST = 1e-4
"""Of the largest change, what is still told from 0: a smaller one would leave the curves no room."""
_Z = 1.96
_FEW = 8
"""Heads of a block whose numbers have room in a cell."""

Row = Mapping[str, Any]


def save_sensitivity(path: str, rows: Sequence[Row], measure: str, *, title: str) -> None:
    """Draw the rows of a sensitivity report; the kind of file is that of the name: .png, .pdf or .svg.

    Args:
        rows: ``block``, ``target``, ``standard_error``, ``images`` and ``measure``; ``head`` where there is one
            for each.
        measure: ``kl`` or ``relative_error``.

    Raises:
        VitcodError: if the file can't be written.
    """
    label = "KL(dense || pruned) in nats" if measure == "kl" else "relative change of the features"
    draw = draw_heads if "head" in rows[0] else draw_blocks
    figure = draw(rows, measure, label)
    figure.suptitle(visible(title), fontsize=FONT + 2, weight="bold", x=0.01, ha="left", parse_math=False)
    what = "head" if "head" in rows[0] else "block"
    note = f"One {what} alone is pruned, all others stay dense; mean over {rows[0]['images']} held-out images."
    if what == "block":
        note += "\nBands: 95 % intervals. What is less than the scale shows lies on its lower edge."
    figure.supxlabel(note, fontsize=FONT - 3, color=_GREY, x=0.01, ha="left", parse_math=False)
    save_figure(figure, path, Path(path).suffix[1:].lower())


def draw_blocks(rows: Sequence[Row], measure: str, label: str) -> Any:
    """A matplotlib Figure: a curve for each sparsity, darker where it is higher."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure: Any = Figure(figsize=(8, 4.8), dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots()
    targets = sorted({row["target"] for row in rows})
    floor = _floor([row[measure] for row in rows])
    for target, color in zip(targets, _shades(len(targets)), strict=True):
        own = [row for row in rows if row["target"] == target]
        blocks = [row["block"] for row in own]
        values = np.array([row[measure] for row in own])
        half = _Z * np.array([row["standard_error"] for row in own])
        axes.fill_between(
            blocks, np.maximum(values - half, floor), np.maximum(values + half, floor), color=color, alpha=0.15
        )
        axes.plot(
            blocks,
            np.maximum(values, floor),
            color=color,
            marker="o",
            markersize=5,
            linewidth=1.6,
            label=f"{100 * target:g} %",
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_xlabel("block", fontsize=FONT)
    axes.set_ylabel(label, fontsize=FONT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT - 2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(title="pruned", frameon=False, fontsize=FONT - 1, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_heads(rows: Sequence[Row], measure: str, label: str) -> Any:
    """A matplotlib Figure: for each sparsity a panel of blocks x heads, all with one scale of colours."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    targets = sorted({row["target"] for row in rows})
    columns = min(len(targets), _PANELS)
    lines = math.ceil(len(targets) / columns)
    blocks, heads = 1 + max(row["block"] for row in rows), 1 + max(row["head"] for row in rows)
    size = (1.6 + columns * max(1.8, 0.3 * heads + 0.6), 1.4 + lines * max(2.4, 0.28 * blocks + 0.7))
    figure: Any = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    values = [row[measure] for row in rows]
    floor = max(_floor(values), _RANGE * max(values))
    norm = LogNorm(floor, max(*values, 2 * floor))
    image: Any = None
    for axes, target in zip(panels.flat, targets, strict=False):
        cells = _cells([row for row in rows if row["target"] == target], measure, (blocks, heads))
        image = axes.imshow(np.maximum(cells, floor), cmap=COLORS, norm=norm, aspect="auto")
        axes.set_title(f"{100 * target:g} % pruned", fontsize=FONT)
        axes.tick_params(labelsize=FONT - 2)
        axes.set_xticks(range(heads) if heads <= _FEW else range(0, heads, max(1, heads // _FEW)))
        axes.set_yticks(range(0, blocks, max(1, blocks // 12)))
    for axes in panels.flat[len(targets) :]:
        axes.set_axis_off()
    for axes in panels[-1]:
        axes.set_xlabel("head", fontsize=FONT)
    for axes in panels[:, 0]:
        axes.set_ylabel("block", fontsize=FONT)
    bar = figure.colorbar(image, ax=panels, fraction=0.05, extend="min")
    bar.set_label(label, fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 2)
    return figure


def _cells(rows: Sequence[Row], measure: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    """[blocks, heads]; NaN, which stays white, where there is no row."""
    cells = np.full(shape, np.nan)
    for row in rows:
        cells[row["block"], row["head"]] = row[measure]
    return cells


def _floor(values: Sequence[float]) -> float:
    """What takes the place of 0 and of next to nothing on a logarithmic scale."""
    above = [value for value in values if value > 0]
    return max(min(above) / 2, max(above) * _SMALLEST) if above else _SMALLEST


def _shades(count: int) -> list[Any]:
    """So many colours of one scale, without its palest and its black end."""
    from matplotlib import colormaps

    return [colormaps[COLORS](0.25 + 0.6 * place / max(count - 1, 1)) for place in range(count)]
