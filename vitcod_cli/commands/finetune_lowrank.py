"""``vitcod finetune-lowrank``: step 1, Q and K pass through a head auto-encoder."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_fit
from vitcod_cli.steps.options import LowRankOptions


def finetune_lowrank(options: LowRankOptions) -> None:
    """Step 1: squeeze the heads of Q and K through a small auto-encoder, and fine-tune.

    A checkpoint that is low-rank already is fine-tuned as it is.
    """
    from vitcod_cli.steps.lowrank import finetune_lowrank as step

    print_fit(step(options, console()), as_json=options.result.json)
