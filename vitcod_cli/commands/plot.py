"""``vitcod plot``: pictures of attention maps and masks."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_path
from vitcod_cli.plots.settings import PlotOptions


def plot(options: PlotOptions) -> None:
    """Draw attention maps and masks: one picture a block, and an overview of all.

    Prints the paths of the pictures on stdout.
    """
    from vitcod_cli.plots.plot import plot as draw

    for path in draw(options, console()):
        print_path(path)
