"""``vitcod dump-attn``: step 2, the mean attention map of a model over its training images."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_path
from vitcod_cli.steps.options import AttentionMapOptions


def dump_attn(options: AttentionMapOptions) -> None:
    """Step 2: average the attention of every head over the training images.

    Prints the path of the map on stdout. Works on dense, low-rank and sparse models alike.
    """
    from vitcod_cli.steps.attention_map import dump_attention as step

    result = step(options, console())
    if options.result.json:
        print_json(result._asdict())
    else:
        print_path(result.path)
