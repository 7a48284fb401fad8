"""``vitcod finetune-dense``: the plain model, baseline and teacher of the others."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_fit
from vitcod_cli.steps.options import DenseOptions


def finetune_dense(options: DenseOptions) -> None:
    """Train or fine-tune the plain model, as DeiT does.

    Without --init-from, the --model starts from random weights. The data set decides how many
    classes the model has, unless --num-classes does.
    """
    from vitcod_cli.steps.dense import finetune_dense as step

    print_fit(step(options, console()), as_json=options.result.json)
