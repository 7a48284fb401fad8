"""``vitcod eval``: accuracy and loss of models."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_result
from vitcod_cli.steps.options import EvalOptions


def evaluate(options: EvalOptions) -> None:
    """Measure Acc@1, Acc@5 and loss of a model, at any point of the pipeline, or of an exported program.

    The last line on stdout is like: * Acc@1 81.576 Acc@5 95.214 loss 0.854

    Several models are shown the same images, and come out as a table, with paired differences to the first, or
    to the one that --against names: one checkpoint with several masks, or as many masks as checkpoints, or none.
    --features compares features: cosine and relative error of the pooled ones and of patch tokens, and whether
    images have the same neighbours. Models without a head are compared so by themselves.
    """
    from vitcod_cli.steps.evaluation import evaluate_models

    report = evaluate_models(options, console())
    if options.result.json:
        print_json(report.to_dict())
        return
    for line in report.lines():
        print_result(line)
