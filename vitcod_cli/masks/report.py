"""What is said of a mask: as a table for people, and as plain values for programs."""

from __future__ import annotations

from typing import Any

from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.masks.statistics import block_sparsity, global_tokens, head_sparsity

_PARAMETERS = ("info_cut", "ratio", "std_coef", "seed")


def mask_metrics(mask: Mask) -> dict[str, Any]:
    """How ``mask`` was made, its sparsity a block, and its global tokens a head."""
    return {
        **{key: value for key, value in mask.info.items() if key != "model_config"},
        "per_block": block_sparsity(mask.keep).tolist(),
        "global_tokens": global_tokens(mask.keep).tolist(),
    }


def mask_table(mask: Mask) -> list[str]:
    """The sparsity of every block in aligned lines. Plain text: Rich would take as long as all the rest."""
    lines = ["block  pruned  least and most pruned head  global tokens of a head"]
    rows = zip(block_sparsity(mask.keep), head_sparsity(mask.keep), global_tokens(mask.keep), strict=True)
    for block, (pruned, heads, tokens) in enumerate(rows):
        span = f"{heads.min():.1%} to {heads.max():.1%}"
        lines.append(f"{block:5}  {pruned:6.1%}  {span:>26}  {f'{tokens.min()} to {tokens.max()}':>23}")
    parameters = [f"{name.replace('_', ' ')} {mask.info[name]:.10g}" for name in _PARAMETERS if name in mask.info]
    method = ", ".join([mask.info["method"], *parameters])
    lines.append(f"  all  {mask.info['sparsity']:6.2%}  by {method}")
    return lines
