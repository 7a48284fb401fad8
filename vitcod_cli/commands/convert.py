"""``vitcod convert``: published files to ours and back, every tensor bit for bit."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_path
from vitcod_cli.export.convert_settings import ConvertOptions


def convert(options: ConvertOptions) -> None:
    """Turn published checkpoints, maps and masks into vitcod's files, and back, bit for bit."""
    from vitcod_cli.export.convert import convert as run

    for path in run(options, console()):
        print_path(path)
