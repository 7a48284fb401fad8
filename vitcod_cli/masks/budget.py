"""What every mask of a budget keeps, and whether the budget is enough for it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.masks.method import SparsityError
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.masks.ranking import Keep, Part, for_each_part

Importance = NDArray[np.floating[Any]]


def check_budget(necessary: Keep, wanted: int, sparsity: float) -> int:
    """How many entries may be kept beyond the ``necessary`` ones, of ``wanted`` in all.

    Raises:
        SparsityError: if the necessary ones are too many.
    """
    more = wanted - int(np.count_nonzero(necessary))
    if more < 0:
        raise SparsityError(
            f"--sparsity {sparsity:g} can't be reached: a key of every row and all prefix tokens are kept, which "
            f"leaves {np.count_nonzero(~necessary) / necessary.size:.4f} at most."
        )
    return more


def necessary_entries(importance: Importance, num_prefix_tokens: int) -> Keep:
    """What every mask keeps: rows and columns of prefix tokens, and the best entry of each row."""
    keep = np.zeros(importance.shape, dtype=np.bool_)
    last = importance.shape[-1] - 1

    def fill(part: Part) -> None:
        best = last - importance[part][:, ::-1].argmax(axis=-1)
        np.put_along_axis(keep[part], best[:, None], True, axis=-1)

    for_each_part(fill, importance)
    return keep_prefix(keep, num_prefix_tokens)
