"""``vitcod sensitivity``: how much the answer of a model depends on each block, or head."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.steps.options import SensitivityOptions


def sensitivity(options: SensitivityOptions) -> None:
    """Prune one block, or head, at a time and say how far the answer moves, without labels.

    Prints a line for each part and a column for each sparsity: KL from the dense answer on held-out images, or,
    of a model without a head, the relative change of its features.
    """
    from vitcod_cli.steps.sensitivity import sensitivity as step

    report = step(options, console())
    if options.result.json:
        print_json(report.to_dict())
        return
    for line in report.lines():
        print_result(line)
