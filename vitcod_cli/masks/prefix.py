"""What holds for every mask: prefix tokens are kept where they are protected, and no row is empty."""

from __future__ import annotations

import numpy as np

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.ranking import Attention, Keep, keep_largest


def keep_prefix(keep: Keep, num_prefix_tokens: int) -> Keep:
    """A copy in which the first tokens (class, distillation, registers) see and are seen by all."""
    keep = keep.copy()
    keep[..., :num_prefix_tokens, :] = True
    keep[..., :, :num_prefix_tokens] = True
    return keep


def fill_empty_rows(keep: Keep, attention: Attention) -> tuple[Keep, int]:
    """Give every row without a key its largest one, because an empty row has no softmax.

    Returns:
        The mask (a copy if anything changed) and the number of rows that were empty.
    """
    empty = ~keep.any(axis=-1)
    count = int(np.count_nonzero(empty))
    if count:
        keep = keep.copy()
        rows = attention[empty]
        keep[empty] = keep_largest(rows, np.sort(rows, axis=-1), np.ones(count, dtype=np.intp))
    return keep, count


def is_binary(attention: Attention) -> bool:
    """Whether it holds nothing but 0 and 1, as a mask does."""
    return bool(((attention == 0) | (attention == 1)).all())


def check_rows(attention: Attention, flag: str = "--attn-map") -> None:
    """Raise a VitcodError unless every row of the map sums to 1, within what float32 sums are off."""
    sums = attention.sum(axis=-1)
    off = np.abs(sums - 1)
    if not off.max() <= 1e-3:
        if is_binary(attention):
            raise VitcodError(
                f"{flag} holds nothing but 0 and 1, so it seems to be a mask saved as numbers and not a mean "
                "attention map; save it as booleans (array.astype(bool)) and give it as --mask."
            )
        raise VitcodError(
            f"{flag} has a row that sums to {sums.flat[off.argmax()]:.4g}, not 1, so it isn't a mean attention "
            "map; make one with vitcod dump-attn."
        )
