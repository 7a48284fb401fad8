"""What is in a mask, in an attention map, and in two masks of one shape. numpy only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.mask import Mask
from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.polarize import Keep, keys_of_queries, queries_of_keys, threshold_of
from vitcod_cli.masks.prefix import check_rows, keep_prefix
from vitcod_cli.masks.ranking import Part, for_each_part
from vitcod_cli.masks.statistics import attention_macs, block_sparsity, head_sparsity, sparsity_of

CUTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Info cuts whose sparsity is told."""


def mask_facts(mask: Mask, threshold: str | None, head_dim: int) -> dict[str, Any]:
    """Sparsity, kept keys of a query, global tokens and arithmetic of a mask; plain values."""
    keep, keys = mask.keep, keys_of_queries(mask.keep)
    most = threshold_of(threshold, keep.shape[-1], 0.25)
    dense = np.count_nonzero(queries_of_keys(keep) > most, axis=-1)
    return {
        "shape": list(keep.shape),
        "sparsity": sparsity_of(keep),
        "per_block": block_sparsity(keep).tolist(),
        "per_head": head_sparsity(keep).tolist(),
        "keys_per_query": {"least": int(keys.min()), "median": float(np.median(keys)), "most": int(keys.max())},
        "empty_rows": int(np.count_nonzero(keys == 0)),
        "global_tokens": dense.tolist(),
        "global_token_threshold": most,
        "polarized": mask.order is not None,
        "head_dim": head_dim,
        "attention_macs": attention_macs(keep.shape, head_dim, keep),
        "dense_attention_macs": attention_macs(keep.shape, head_dim),
    }


def map_facts(attention_map: AttentionMap) -> dict[str, Any]:
    """Entropy of the rows, and the sparsity that each info cut would give, the prefix kept; plain values.

    Raises:
        VitcodError: if its rows don't sum to 1.
    """
    attention = attention_map.attention
    check_rows(attention, "FILE")
    prefix = int(attention_map.info.get("num_prefix_tokens", 1))
    cuts = {cut: sparsity_of(keep_prefix(info_mask(attention, cut), prefix)) for cut in CUTS}
    return {
        "shape": list(attention.shape),
        "images": attention_map.num_images,
        "entropy": row_entropy(attention).mean(axis=(-2, -1)).tolist(),
        "largest_entropy": float(np.log2(attention.shape[-1])),
        "num_prefix_tokens": prefix,
        "info_cuts": {str(cut): sparsity for cut, sparsity in cuts.items()},
        "importance": attention_map.importance is not None,
    }


def row_entropy(attention: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Bits of each row [L, H, N] of a map [L, H, N, N]: log2 N where a query looks everywhere alike."""
    entropy = np.empty(attention.shape[:-1])

    def fill(part: Part) -> None:
        rows = attention[part].astype(np.float64)
        entropy[part] = -(rows * np.log2(rows, out=np.zeros_like(rows), where=rows > 0)).sum(axis=-1)

    for_each_part(fill, attention)
    return entropy


def overlaps(masks: Mapping[str, Keep]) -> list[dict[str, Any]]:
    """For every two masks of one shape: what part of all kept entries both keep, and of either one's the other."""
    found = []
    for (one, first), (other, second) in itertools.combinations(masks.items(), 2):
        if first.shape != second.shape:
            continue
        both = int(np.count_nonzero(first & second))
        sizes = int(np.count_nonzero(first)), int(np.count_nonzero(second))
        found.append(
            {
                "files": [one, other],
                "of_all": both / max(sum(sizes) - both, 1),
                "of_first": both / max(sizes[0], 1),
                "of_second": both / max(sizes[1], 1),
            }
        )
    return found
