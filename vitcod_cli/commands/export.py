"""``vitcod export``: the finished model for other programs."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_path
from vitcod_cli.export.settings import ExportOptions


def export(options: ExportOptions) -> None:
    """Write a model for programs that know nothing of vitcod.

    A .pt2 or .onnx file holds all of it: auto-encoders folded into qkv, the mask in the attention. It is
    run once before it is written, and its logits compared. Prints the path on stdout.
    """
    from vitcod_cli.export.write import export as write

    result = write(options, console())
    if options.result.json:
        print_json(result)
    else:
        print_path(result["path"])
