"""``vitcod eval``: accuracy and loss of a checkpoint."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.steps.options import EvalOptions


def evaluate(options: EvalOptions) -> None:
    """Measure Acc@1, Acc@5 and loss of a model, at any point of the pipeline.

    The last line on stdout is like: * Acc@1 81.576 Acc@5 95.214 loss 0.854
    """
    from vitcod_cli.steps.evaluation import evaluate as step

    result = step(options, console())
    if options.result.json:
        print_json(result.to_dict())
    else:
        print_result(result.line())
