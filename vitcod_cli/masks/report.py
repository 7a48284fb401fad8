"""What is said of a mask: as a table for people, and as plain values for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.masks.budget import budget, fewest_entries, most_sparsity
from vitcod_cli.masks.polarize import Split
from vitcod_cli.masks.statistics import block_sparsity, global_tokens, head_sparsity

_GLOBAL = 50
_PARAMETERS = ("info_cut", "ratio", "std_coef", "seed", "lanes", "min_density")


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
    rows = zip(block_sparsity(mask.keep), head_sparsity(mask.keep), global_tokens(mask.keep, _GLOBAL), strict=True)
    for block, (pruned, heads, tokens) in enumerate(rows):
        span = f"{heads.min():.1%} to {heads.max():.1%}"
        lines.append(f"{block:5}  {pruned:6.1%}  {span:>26}  {f'{tokens.min()} to {tokens.max()}':>23}")
    parameters = [f"{name.replace('_', ' ')} {mask.info[name]:.10g}" for name in _PARAMETERS if name in mask.info]
    method = ", ".join([mask.info["method"], *parameters])
    lines.append(f"  all  {mask.info['sparsity']:6.2%}  by {method}")
    lines.append(f"Global token: a key that more than {_GLOBAL} queries of the head keep.")
    if "block" in mask.info:
        lines.append(f"{_tiles(mask.info)}: {mask.info['empty_tiles']:.1%} are empty.")
    return [*lines, *_other_than_asked(mask)]


def _tiles(info: Mapping[str, Any]) -> str:
    queries, keys = info["block"], info.get("block_keys")
    if keys is None:
        return f"Whole tiles of {queries} queries and keys"
    return f"Whole tiles of {queries} queries and {keys} key{'s' * (keys > 1)}"


def _other_than_asked(mask: Mask) -> list[str]:
    """Why a ``--ratio`` has become another sparsity, and how to get just that, in a line."""
    ratio, sparsity, size = mask.info.get("ratio"), mask.info["sparsity"], mask.keep.size
    if ratio is None or abs(sparsity - ratio) < 5e-5:
        return []
    if "block" in mask.info:
        return [f"Not {ratio:.2%}: whole tiles are kept. --sparsity {ratio:.10g} comes nearest to that."]
    prefix = mask.info["num_prefix_tokens"] if mask.info["protect_prefix"] else 0
    fewest = fewest_entries(mask.keep.shape, prefix)
    way_on = f"--sparsity {ratio:.10g} gives just that"
    if budget(size, ratio) < fewest:
        way_on = f"--sparsity {most_sparsity(fewest, size):.4f} is the most"
    return [f"Not {ratio:.2%}: {_why_other(mask, ratio, prefix)}. {way_on}."]


def _why_other(mask: Mask, ratio: float, prefix: int) -> str:
    """What has added entries to a ``ratio``, or taken some away."""
    num_rows, num_keys = mask.keep[..., 0].size, mask.keep.shape[-1]
    drawn = mask.info["method"] == "random"
    if mask.info["sparsity"] < ratio:  # what is kept whatever the method says only ever adds
        if prefix:
            return "prefix tokens are kept whole"
        if not drawn or num_rows * ratio**num_keys >= 0.5:  # of a draw, so many rows come out empty
            return "every row keeps a key"
    return "each entry is drawn by itself" if drawn else "a row keeps whole keys"


def order_metrics(mask: Mask) -> dict[str, Any]:
    """How a polarized mask was split: for each block, for all, and the dense keys of each head."""
    assert mask.order is not None
    *blocks, total = Split.of(mask.keep, mask.order).rows()
    return {
        "threshold": mask.info["threshold"],
        "order": mask.info["order"],
        "per_block": blocks,
        "total": total,
        "global_tokens": mask.order.global_tokens.tolist(),
    }


def order_table(mask: Mask) -> list[str]:
    """The split of every block in aligned lines, and how it was made."""
    assert mask.order is not None
    lines = [
        "       dense keys  filled  kept entries  computed     most loaded",
        "block  of a head           in them       for each kept  head over mean",
    ]
    rows = Split.of(mask.keep, mask.order).rows()
    for name, row in zip([*range(len(rows) - 1), "all"], rows, strict=True):
        span = f"{row['least']:.0f} to {row['most']:.0f}"
        lines.append(
            f"{name:>5}  {span:<10}  {row['fill']:6.1%}  {row['share']:12.1%}  {row['slots']:13.2f}  "
            f"{row['imbalance']:14.2f}"
        )
    moves = "tokens" if mask.info["order"] == "tokens" else "keys and values"
    lines.append(f"Dense: keys that more than {mask.info['threshold']} queries keep. What moves: {moves}.")
    return lines
