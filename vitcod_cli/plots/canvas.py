"""A grid of square panels laid out in pixels, and token axes, for :mod:`vitcod_cli.plots.draw`.

Panels are placed by the pixel because a token must be a whole number of pixels wide: resampling would
lose single rows and columns of a sparse mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.model.grid import Grid
from vitcod_cli.reporting import visible

DPI = 100
FONT = 12
_TOP, _LEFT, _BOTTOM, _RIGHT = 100, 80, 80, 140


class Canvas:
    """A matplotlib figure of ``rows`` x ``columns`` panels of ``size`` pixels."""

    def __init__(
        self, size: int, *, rows: int, columns: int, gap: tuple[int, int] = (36, 20), bottom: int = _BOTTOM
    ) -> None:
        """``gap``: pixels between panels, (vertical, horizontal); ``bottom``: below, for labels and a note."""
        from matplotlib.figure import Figure

        self.size, self.rows, self.columns, self.gap = size, rows, columns, gap
        self.inner_width = columns * (size + gap[1]) - gap[1]
        self.inner_height = rows * (size + gap[0]) - gap[0]
        self.width = _LEFT + self.inner_width + _RIGHT
        self.height = _TOP + self.inner_height + bottom
        self.figure: Any = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")

    def _axes(self, left: int, top: int, width: int, height: int) -> Any:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def headline(self, text: str) -> None:
        """The title of the whole picture, in letters that any font has."""
        text = visible(text)
        y, room = 1 - 28 / self.height, self.width - _LEFT
        size = min(16.0, 1.15 * room / max(len(text), 1))  # a bold letter is 0.86 pixels wide for each point
        self.figure.text(_LEFT / self.width, y, text, fontsize=size, weight="bold", va="center", parse_math=False)

    def footnote(self, text: str) -> None:
        """A small line below everything."""
        y, room = 12 / self.height, self.width - _LEFT
        size = min(FONT - 2.0, 1.2 * room / max(len(text), 1))  # a letter is 0.8 pixels wide for each point
        self.figure.text(_LEFT / self.width, y, text, fontsize=size, color="#666666", va="center")

    def panel(self, row: int, column: int, title: str) -> Any:
        """The axes of one panel, with no frame: a frame would hide the first row and column."""
        left = _LEFT + column * (self.size + self.gap[1])
        top = _TOP + row * (self.size + self.gap[0])
        axes = self._axes(left, top, self.size, self.size)
        axes.set_title(title, fontsize=FONT)
        for spine in axes.spines.values():
            spine.set(color="#bbbbbb", linewidth=1, position=("outward", 1))
        axes.tick_params(color="#777777", labelsize=FONT - 2, length=5)
        axes.tick_params(which="minor", color="#777777", length=3)
        return axes

    def color_bar(self, image: Any, label: str) -> None:
        """The scale of ``image``, to the right of all panels."""
        height = min(self.inner_height, max(self.size, 300))
        axes = self._axes(_LEFT + self.inner_width + 28, _TOP, 16, height)
        bar = self.figure.colorbar(image, cax=axes, extend="both")
        bar.set_label(label if height >= 300 else label.replace(" probability", "\nprobability"), fontsize=FONT)
        bar.ax.tick_params(labelsize=FONT - 2)
        bar.outline.set_visible(False)


class TokenAxis:
    """How the tokens of a map lie on the pixels of a panel: prefix tokens first, and thicker.

    Attributes:
        size: width and height of a panel in pixels.
    """

    def __init__(
        self, num_tokens: int, num_prefix_tokens: int, grid: Grid | None = None, *, target: int = 340
    ) -> None:
        """``target``: pixels that a panel should have, about; more if the tokens need them."""
        self.num_tokens, self.num_prefix_tokens, self.grid = num_tokens, num_prefix_tokens, grid
        # One row of 197 would hardly be seen.
        self._prefix_width = max(1, round(num_tokens / 60))
        self._widths = np.ones(num_tokens, dtype=int)
        self._widths[:num_prefix_tokens] = self._prefix_width
        cells = int(self._widths.sum())
        self.size = cells * max(1, round(target / cells))

    def widen(self, image: NDArray[Any]) -> NDArray[Any]:
        """``image`` [N, N] with its prefix rows and columns repeated."""
        return image.repeat(self._widths, axis=0).repeat(self._widths, axis=1)

    @property
    def note(self) -> str:
        """What a reader must know of the thicker prefix; may be empty."""
        if self._prefix_width == 1 or not self.num_prefix_tokens:
            return ""
        count = self.num_prefix_tokens
        first = "The first row and column are" if count == 1 else f"The first {count} rows and columns are"
        return f"{first} the prefix token{'s' if count > 1 else ''}, drawn {self._prefix_width} times as thick."

    @property
    def tick_note(self) -> str:
        """What the ticks are; empty where the patches make no grid."""
        return "" if self.grid is None else f"Ticks: where each row of the {self.grid} patches begins."

    def label(self, axes: Any, *, queries: bool, keys: bool) -> None:
        """Ticks at the prefix and at the beginning of each row of patches; names and numbers where asked."""
        positions, names, others = self._ticks()
        for axis, shown, name in ((axes.yaxis, queries, "query token"), (axes.xaxis, keys, "key token")):
            axis.set_ticks(positions, labels=names if shown else [""] * len(names))
            axis.set_ticks(others, minor=True)
            if shown:
                axis.set_label_text(name, fontsize=FONT)

    def _ticks(self) -> tuple[list[float], list[str], list[float]]:
        """Where tokens have a tick and a name, the names, and where they have a tick alone."""
        starts = np.concatenate([[0], np.cumsum(self._widths)[:-1]])
        centres = starts + (self._widths - 1) / 2
        first, patches = self.num_prefix_tokens, self.num_tokens - self.num_prefix_tokens
        step, every = max(1, round(patches / 5)), 1
        if self.grid is not None:
            step, every = self.grid.columns, max(1, round(self.grid.rows / 4))
        rows = list(range(first, self.num_tokens, step))
        named = rows[::every]
        positions, names = [float(centres[token]) for token in named], [str(token) for token in named]
        if first:  # its name takes the room of the first patch's
            positions, names = [float(centres[:first].mean()), *positions[1:]], ["prefix", *names[1:]]
            named = named[1:]
        return positions, names, [float(centres[token]) for token in rows if token not in named]
