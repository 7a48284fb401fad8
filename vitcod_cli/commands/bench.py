"""``vitcod bench``: what a model costs, counted and measured."""

from __future__ import annotations

from vitcod_cli.bench.settings import BenchOptions
from vitcod_cli.cli.console import console, print_json, print_table, shows_colors


def bench(options: BenchOptions) -> None:
    """Count a model's arithmetic, and measure its time and memory on this machine.

    Without --checkpoint, a model of random weights is measured: the time is the same. A model with a
    mask is timed interleaved with itself without it, and a sentence says what the mask is worth here.
    Times are medians; "middle half" is the range from the lower to the upper quartile.
    """
    from vitcod_cli.bench.run import bench as run

    report = run(options, console())
    if options.result.json:
        print_json(report.to_dict())
    else:
        print_table(report.text(colors=shows_colors()))
