"""``vitcod polarize``: a mask with its dense keys first. Needs numpy only."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_path
from vitcod_cli.masks.order_settings import PolarizeOptions


def polarize(options: PolarizeOptions) -> None:
    """Put the keys that many queries keep before all others, head by head.

    An accelerator computes them as a dense strip. The mask itself stays as it is: the file says the order, and is
    a mask like any other. Prints the split of every block, then the paths of the files on stdout.
    """
    from vitcod_cli.masks.report import order_metrics, order_table
    from vitcod_cli.steps.polarize import polarize as run

    reporter = console()
    paths, mask = run(options)
    for line in order_table(mask):
        reporter.info(line)
    if options.result.json:
        print_json({"paths": [str(path) for path in paths], **order_metrics(mask)})
    else:
        for path in paths:
            print_path(path)
