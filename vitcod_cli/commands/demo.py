"""``vitcod demo``: all four steps on real data, each shown as the command that a user would type."""

from __future__ import annotations

import time

from vitcod_cli.cli.console import console, print_result
from vitcod_cli.steps.options import DemoOptions


def demo(options: DemoOptions) -> None:
    """Train a small ViT on handwritten digits, and take it through the four steps.

    About three minutes on two CPU cores. Each command is shown before it runs; a table of accuracy,
    sparsity and attention arithmetic comes last.
    """
    from vitcod_cli.steps.demo import Demonstration, table

    start = time.monotonic()
    for line in table(Demonstration(options, console()).run()):
        print_result(line)
    print_result("")
    print_result(f"{time.monotonic() - start:.0f} s in all. In {options.output_dir}: the runs, attn.safetensors,")
    print_result("the masks, plots/: attention map and 80 % mask of each block, side by side; and")
    print_result("report.html, a page of all that.")
