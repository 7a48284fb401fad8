"""``vitcod demo``: all four steps on real data, each shown as the command that a user would type."""

from __future__ import annotations

import time
from pathlib import Path

from vitcod_cli.cli.console import console, print_result
from vitcod_cli.steps.options import DemoOptions


def demo(options: DemoOptions) -> None:
    """Train a small ViT on handwritten digits, and take it through the four steps.

    About three minutes on two CPU cores. Each command is shown before it runs; a table of accuracy,
    sparsity and attention arithmetic comes last.
    """
    from vitcod_cli.steps.demo import Demonstration, table

    folder, start = Path(options.output_dir), time.monotonic()
    print_result("\n".join(table(Demonstration(folder, console()).run())))
    print_result(
        f"\n{time.monotonic() - start:.0f} s in all. In {folder}: the runs, attn.safetensors, the masks, and"
    )
    print_result("plots/: the attention map and the 80 % mask of each block, side by side.")
