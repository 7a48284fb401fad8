"""``vitcod gen-mask``: step 3, a fixed sparse mask from a mean attention map. Needs numpy only."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_json, print_path
from vitcod_cli.masks.settings import MaskOptions


def gen_mask(options: MaskOptions) -> None:
    """Step 3: make a fixed sparse attention mask from a mean attention map.

    Prints the sparsity of every block, then the path of the mask on stdout.
    """
    from vitcod_cli.masks.report import mask_metrics, mask_table
    from vitcod_cli.steps.mask import make_mask

    reporter = console()
    path, mask = make_mask(options, reporter)
    for line in mask_table(mask):
        reporter.info(line)
    if options.result.json:
        print_json({"path": str(path), **mask_metrics(mask)})
    else:
        print_path(path)
