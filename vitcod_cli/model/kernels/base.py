"""What a kernel is: the masked attention of one layer's heads, computed in one way or another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Heads(NamedTuple):
    """What a layer attends with.

    Attributes:
        tokens: the layer's input [B, N, C].
        q, k, v: [B, H, N, d]; q and k behind their norms and auto-encoders. Where only the first rows of the
            output are wanted, q has only these.
        packed: [B, N, 3*H*d], what q, k and v are views of; None where they aren't.
        bias: what is added to the logits beside the mask, [H, N, N]: a relative position bias; None: nothing.
    """

    tokens: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    packed: Tensor | None
    bias: Tensor | None = None

    def packed_rows(self) -> Tensor:
        """Q, K and V side by side, [B, N, 3*H*d]."""
        if self.packed is not None:
            return self.packed
        parts = [part.transpose(1, 2) for part in (self.q, self.k, self.v)]
        return torch.stack(parts, dim=2).flatten(2)


class Kernel(nn.Module):
    """softmax(q k^T / sqrt(d)) v over the entries that a mask keeps. Subclasses say how.

    Attributes:
        needs_all_rows: whether q must have a row for every token. If not, it may have the first ones alone, and
            the first rows of the mask are theirs.
    """

    needs_all_rows = True

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """Attended values, heads side by side: [B, N, H*d], N being the rows of q.

        Args:
            keep: bool [H, N, N] or None; True = this query may look at this key.
            dropout: probability of dropping an attention probability.
        """
        raise NotImplementedError


def merge(attended: Tensor) -> Tensor:
    """Attended values [B, H, N, d], heads side by side: [B, N, H*d]."""
    return attended.transpose(1, 2).flatten(2)


def additive_mask(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """``keep`` [..., N, N] as what is added to logits: 0 where kept, -inf where pruned; [..., N, N] of ``dtype``.

    Fused attention would make it from a bool mask at every call.
    """
    # Rows start at multiples of 16 numbers, as the kernels of a GPU want it; else they copy the mask.
    width = keep.shape[-1]
    padded = torch.zeros(*keep.shape[:-1], -(-width // 16) * 16, dtype=dtype, device=keep.device)
    return padded[..., :width].masked_fill_(~keep, float("-inf"))


def added_to_logits(keep: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Mask bool and bias, [H, N, N] both, as what is added to logits, of ``dtype``; None: nothing."""
    additive = None if keep is None else additive_mask(keep, dtype)
    if bias is None:
        return additive
    return bias.to(dtype) if additive is None else additive + bias.to(dtype)


def masked_logits(q: Tensor, k: Tensor, keep: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Scaled attention logits [B, H, N, N] of q, k [B, H, N, d], biased, with -inf where the mask prunes."""
    logits: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    # In place, and a sum: filling under a broadcast mask takes as long as both products.
    added = added_to_logits(keep, bias, logits.dtype)
    return logits if added is None else logits.add_(added)


def slices(length: int, size: int) -> list[slice]:
    """0 to ``length`` in parts of ``size``, the last of what is left."""
    return [slice(start, start + size) for start in range(0, length, size)]
