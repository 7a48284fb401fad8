"""``vitcod finetune-sparse``: step 4, recover accuracy under the fixed mask."""

from __future__ import annotations

from vitcod_cli.cli.console import console, print_fit
from vitcod_cli.steps.options import SparseOptions


def finetune_sparse(options: SparseOptions) -> None:
    """Step 4: fine-tune the model under a fixed sparse attention mask.

    The checkpoints hold the mask too, so that a sparse model is one file.
    """
    from vitcod_cli.steps.sparse import finetune_sparse as step

    print_fit(step(options, console()), as_json=options.result.json)
