"""A line for each model, in at most 80 columns, and what the columns mean."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from vitcod_cli.evaluation.names import distinct

_WIDTH = 80


def model_table(models: Sequence[str], columns: Sequence[Sequence[str]], note: str) -> list[str]:
    """Head, rule, rows, and the note behind an empty line.

    Args:
        models: names, which are cut where there is no room for them; no two stay alike.
        columns: texts of each, to the right, its head first.
    """
    widths = [max(map(len, column)) for column in columns]
    names = ["model", *distinct(models, _WIDTH - sum(width + 1 for width in widths))]
    width = max(map(cell_len, names))
    lines = [
        " ".join(
            [set_cell_size(name, width), *(f"{text:>{w}}" for text, w in zip(texts, widths, strict=True))]
        ).rstrip()
        for name, *texts in zip(names, *columns, strict=True)
    ]
    rule = "-" * (width + sum(width + 1 for width in widths))
    return [lines[0], rule, *lines[1:], "", *textwrap.wrap(note, _WIDTH)]
