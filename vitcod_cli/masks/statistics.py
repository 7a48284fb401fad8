"""What a mask saves and where: sparsity, attention arithmetic, global tokens. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Keep = NDArray[np.bool_]


def sparsity_of(keep: Keep) -> float:
    """The share of pruned entries among all entries, prefix rows and columns included."""
    return 1 - np.count_nonzero(keep) / keep.size


def head_sparsity(keep: Keep) -> NDArray[np.float64]:
    """Share of pruned entries of each head: [L, H] for a mask [L, H, N, N]."""
    sparsity: NDArray[np.float64] = 1 - np.count_nonzero(keep, axis=(-2, -1)) / np.prod(keep.shape[-2:])
    return sparsity


def block_sparsity(keep: Keep) -> NDArray[np.float64]:
    """Share of pruned entries of each block: [L] for a mask [L, H, N, N]."""
    sparsity: NDArray[np.float64] = head_sparsity(keep).mean(axis=-1)
    return sparsity


def attention_macs(shape: tuple[int, ...], head_dim: int, keep: Keep | None = None) -> int:
    """Multiply-accumulates per image of the two attention products (Q K^T and A V) of all blocks.

    Args:
        shape: (L, H, N, N) of the maps.
        head_dim: channels of one head.
        keep: the mask, of that shape; None for dense attention. Only kept entries are counted: what
            hardware that skips the others would do, not what a dense kernel under a mask does.
    """
    entries = int(np.prod(shape)) if keep is None else int(np.count_nonzero(keep))
    return 2 * entries * head_dim


def global_tokens(keep: Keep, more_than_rows: int = 50) -> NDArray[np.int64]:
    """Number of global tokens of each head, [L, H]: keys that more than ``more_than_rows`` queries keep.

    The published accelerator computes them as a dense strip, everything else as sparse work
    (HPCA 2023, section IV-A); 50 is the threshold of the published masks.
    """
    counts: NDArray[np.int64] = np.count_nonzero(np.count_nonzero(keep, axis=-2) > more_than_rows, axis=-1)
    return counts


def mask_arrays(keep: Keep) -> dict[str, NDArray[Any]]:
    """A mask bool [L, H, N, N] for other programs, with the sparsity and the global tokens of each head [L, H]."""
    return {"keep": keep, "head_sparsity": head_sparsity(keep), "global_tokens": global_tokens(keep)}
