"""Accuracy over sparsity: the dense line, a curve a method, error bars, and the paired differences beside it.

Of models without a head: the relative error of their features, and the cosine beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitcod_cli.evaluation.features import is_of_features
from vitcod_cli.plots.canvas import FONT
from vitcod_cli.plots.files import save_figure
from vitcod_cli.reporting import visible

_COLORS = {"info": "#d95f02", "allocated": "#1f6fb4"}
_MARKERS = {"info": "s", "allocated": "o"}
_OTHER = "#7a5195"
_GREY = "#555555"


def save_curve(
    paths: Sequence[str],
    dense: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    *,
    title: str,
    labelled: bool = True,
) -> None:
    """Draw the points of a sweep, and write the picture under each of ``paths``: .png, .pdf, .svg by their names.

    Args:
        dense: ``acc1``, ``acc1_low``, ``acc1_high`` in percent, and ``images``; of a model without a head
            ``images``, and ``cosine``, ``cosine_p5``, ``relative_error``, ``relative_error_low``,
            ``relative_error_high``.
        points: these, ``method``, ``sparsity`` and, where there are accuracies, ``difference`` (``points``,
            ``low``, ``high``).
        labelled: without labels, ``acc1`` is agreement with the dense model.
    """
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(11, 4.8), dpi=120, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    note = f"Error bars: 95 % intervals on {dense['images']} images; left of each figure, right"
    if is_of_features(dense):
        _error(left, points)
        _cosine(right, points)
        note += " down to what the worst twentieth of the images doesn't reach."
    else:
        _accuracy(left, dense, points, labelled)
        _difference(right, points, labelled)
        note += " of the difference on the same images."
    for axes in (left, right):
        axes.set_xlabel("pruned attention entries in %", fontsize=FONT)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=FONT - 2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(visible(title), fontsize=FONT + 2, weight="bold", x=0.01, ha="left", parse_math=False)
    figure.supxlabel(note, fontsize=FONT - 3, color=_GREY, x=0.01, ha="left", parse_math=False)
    for path in paths:
        save_figure(figure, path, path.rpartition(".")[2])


def _accuracy(axes: Any, dense: Mapping[str, Any], points: Sequence[Mapping[str, Any]], labelled: bool) -> None:
    axes.axhspan(dense["acc1_low"], dense["acc1_high"], color="#000000", alpha=0.06, linewidth=0)
    axes.axhline(dense["acc1"], color="black", linestyle="--", linewidth=1.2, label=f"dense ({dense['acc1']:.1f})")
    for method, rows in _by_method(points):
        values = [row["acc1"] for row in rows]
        low = [row["acc1"] - row["acc1_low"] for row in rows]
        high = [row["acc1_high"] - row["acc1"] for row in rows]
        _curve(axes, method, rows, values, [low, high])
    axes.set_ylabel("Acc@1 in %" if labelled else "agreement with dense in %", fontsize=FONT)
    axes.legend(frameon=False, fontsize=FONT - 1, loc="lower left")


def _difference(axes: Any, points: Sequence[Mapping[str, Any]], labelled: bool) -> None:
    axes.axhline(0, color="black", linestyle="--", linewidth=1.2)
    for method, rows in _by_method(points):
        differences = [row["difference"] for row in rows]
        values = [each["points"] for each in differences]
        low = [max(each["points"] - each["low"], 0) for each in differences]
        high = [max(each["high"] - each["points"], 0) for each in differences]
        _curve(axes, method, rows, values, [low, high])
    what = "Acc@1" if labelled else "agreement"
    axes.set_ylabel(f"{what} against dense, in points", fontsize=FONT)


def _error(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(0, color="black", linestyle="--", linewidth=1.2, label="dense")
    for method, rows in _by_method(points):
        values = [100 * row["relative_error"] for row in rows]
        low = [100 * (row["relative_error"] - row["relative_error_low"]) for row in rows]
        high = [100 * (row["relative_error_high"] - row["relative_error"]) for row in rows]
        _curve(axes, method, rows, values, [low, high])
    axes.set_ylabel("error of the features to dense in %", fontsize=FONT)
    axes.legend(frameon=False, fontsize=FONT - 1, loc="upper left")


def _cosine(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(1, color="black", linestyle="--", linewidth=1.2)
    for method, rows in _by_method(points):
        values = [row["cosine"] for row in rows]
        below = [max(row["cosine"] - row["cosine_p5"], 0.0) for row in rows]
        _curve(axes, method, rows, values, [below, [0.0] * len(rows)])
    axes.set_ylabel("cosine of the features with dense", fontsize=FONT)


def _curve(
    axes: Any, method: str, rows: Sequence[Mapping[str, Any]], values: list[float], errors: list[list[float]]
) -> None:
    axes.errorbar(
        [100 * row["sparsity"] for row in rows],
        values,
        yerr=np.asarray(errors),
        color=_COLORS.get(method, _OTHER),
        marker=_MARKERS.get(method, "^"),
        markersize=5,
        capsize=3,
        linewidth=1.6,
        elinewidth=1,
        label=visible(method),
    )


def _by_method(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    methods = dict.fromkeys(str(row["method"]) for row in points)
    return [
        (
            method,
            sorted((row for row in points if row["method"] == method), key=lambda row: float(row["sparsity"])),
        )
        for method in methods
    ]
