"""``vitcod inspect``: what a file is and what is in it."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.inspection.settings import InspectOptions


def inspect(options: InspectOptions) -> None:
    """Say what files are: model, sizes, how they were made, and what is in them.

    Of a mask its sparsity, global tokens and arithmetic, of a map its entropy and what each info cut would prune,
    of a checkpoint its weights, auto-encoders and mask; of several masks, what they have in common.
    """
    from vitcod_cli.inspection.inspect import inspect as look
    from vitcod_cli.inspection.report import inspection_lines

    found = look(options, console())
    if options.result.json:
        print_json(found)
    else:
        for line in inspection_lines(found):
            print_result(line)
