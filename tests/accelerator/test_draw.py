"""The picture of a simulation can be read, whatever the mask and the chip."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vitcod_cli.accelerator.draw import draw
from vitcod_cli.accelerator.run import Simulation, simulate
from vitcod_cli.accelerator.settings import SimulateOptions

EVEN = np.random.default_rng(0).random((12, 4, 64, 64)) < 0.2
UNEVEN = np.random.default_rng(0).random((12, 4, 64, 64)) < np.linspace(0.01, 0.6, 12)[:, None, None, None]


def simulated(tmp_path: Path, keep: Any, chip: str = "") -> Simulation:
    np.save(tmp_path / "mask.npy", ~keep)
    (tmp_path / "chip.yaml").write_text(f"lines: 64\n{chip}\n")
    return simulate(SimulateOptions(mask=str(tmp_path / "mask.npy"), hardware=str(tmp_path / "chip.yaml")))


def drawn(simulation: Simulation, title: str = "deit_tiny") -> tuple[Any, Any]:
    figure = draw(simulation, title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, canvas.get_renderer()


def visible_ticks(axis: Any, renderer: Any) -> list[Any]:
    # Labels outside the limits exist, but aren't drawn.
    low, high = sorted(axis.get_view_interval())
    labels = [
        label
        for minor in (False, True)
        for place, label in zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor), strict=True)
        if label.get_text() and low <= place <= high
    ]
    return [label.get_window_extent(renderer) for label in labels]


@pytest.mark.parametrize("keep", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("chip", ["", "bandwidth: 1e9", "bandwidth: 1e13", "clock: 1e3"])
def test_nothing_lies_over_anything(tmp_path: Path, keep: Any, chip: str) -> None:
    figure, renderer = drawn(simulated(tmp_path, keep, chip))
    roofline, blocks, _, compared = figure.axes[:4]
    for axis in (roofline.xaxis, roofline.yaxis, blocks.xaxis, compared.xaxis):
        extents = visible_ticks(axis, renderer)
        assert len(extents) > 1
        assert not any(one.overlaps(other) for one, other in combinations(extents, 2))
    legend = blocks.get_legend().get_window_extent(renderer)
    assert not any(legend.overlaps(bar.get_window_extent(renderer)) for bar in blocks.patches)
    right = compared.get_window_extent(renderer).x1
    assert all(text.get_window_extent(renderer).x1 <= right for text in compared.texts)


def test_a_long_name_stays_in_the_picture(tmp_path: Path) -> None:
    figure, renderer = drawn(simulated(tmp_path, EVEN), "m" * 3000)
    title = figure.get_suptitle()
    assert "…: estimate on 64 x 8 MACs, 500 MHz, 76.8 GB/s" in title
    extent = next(text for text in figure.texts if text.get_text() == title).get_window_extent(renderer)
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.x1


def test_empty_blocks_leave_the_rest_to_be_seen(tmp_path: Path) -> None:
    keep = UNEVEN.copy()
    keep[3] = False
    np.save(tmp_path / "mask.npy", ~keep)
    figure, _ = drawn(simulate(SimulateOptions(mask=str(tmp_path / "mask.npy"), ratio=1.0)))
    low, high = figure.axes[0].get_ylim()
    dots = figure.axes[0].collections[1].get_offsets()[:, 1]
    assert dots[3] == 0
    assert all(low < dot < high for place, dot in enumerate(dots) if place != 3)
