"""What holds for every mask: prefix tokens are kept where they are protected, and no row is empty."""

from __future__ import annotations

import numpy as np

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.ranking import Attention, Keep, Part, for_each_part, keep_largest, map_parts


def keep_prefix(keep: Keep, num_prefix_tokens: int) -> Keep:
    """``keep``, changed in place: the first tokens (class, distillation, registers) see and are seen by all."""
    keep[..., :num_prefix_tokens, :] = True
    keep[..., :, :num_prefix_tokens] = True
    return keep


def fill_empty_rows(keep: Keep, attention: Attention) -> int:
    """Give every row of ``keep`` without a key its largest one, in place: an empty row has no softmax.

    Returns:
        The number of rows that were empty.
    """

    def fill(part: Part) -> int:
        empty = ~keep[part].any(axis=-1)
        count = int(np.count_nonzero(empty))
        if count:
            rows = attention[part][empty]
            keep[part][empty] = keep_largest(rows, np.sort(rows, axis=-1), np.ones(count, dtype=np.intp))
        return count

    return sum(map_parts(fill, attention))


def is_binary(attention: Attention) -> bool:
    """Whether it holds nothing but 0 and 1, as a mask does."""
    return all(map_parts(lambda part: bool(np.isin(attention[part], (0, 1)).all()), attention))


def check_rows(attention: Attention, flag: str = "--attn-map") -> None:
    """Raise a VitcodError unless every row of the map sums to 1, within what float32 sums are off."""
    sums = np.empty(attention.shape[:-1], dtype=attention.dtype)

    def add_up(part: Part) -> None:
        sums[part] = attention[part].sum(axis=-1)

    for_each_part(add_up, attention)
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
