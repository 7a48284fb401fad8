"""torch's fused attention: the kernel of every layer that nobody gives another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcod_cli.model.kernels.base import Heads, Kernel, added_to_logits, merge
from vitcod_cli.model.kernels.explicit import ExplicitAttention

PREPARED = 2**25
"""Entries of a layer's mask up to which what is added to logits is made once: for a larger one the floats of all
layers would take gigabytes, and making those of one layer is a small part of its attention."""


class FusedKernel(Kernel):
    """``scaled_dot_product_attention``; explicit products where those are faster, in half precision on a CPU.

    Args:
        additive: mask and bias as what is added to logits, [1, H, N, N], made once for inference; it stands for
            both where the arithmetic is in its dtype.
    """

    needs_all_rows = False

    def __init__(self, additive: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("additive", additive, persistent=False)
        self.additive: Tensor | None

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`Kernel`."""
        q, k, v = heads.q, heads.k, heads.v
        rows = q.shape[-2]
        half_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
        all_rows = rows == k.shape[-2]  # with a few, nothing is slow
        trains_bias = heads.bias is not None and heads.bias.requires_grad
        training = dropout == 0 and torch.is_grad_enabled() and q.requires_grad and not trains_bias
        if half_on_cpu and all_rows and training:
            with torch.autocast("cpu", enabled=False):
                attended: Tensor = ExplicitAttention.apply(q, k, v, added_to_logits(keep, heads.bias, q.dtype))
            return merge(attended)
        if self.additive is not None and self.additive.dtype == q.dtype:
            mask: Tensor | None = self.additive[:, :, :rows]
        elif heads.bias is not None:
            added = added_to_logits(keep, heads.bias, q.dtype)
            mask = None if added is None else added[None, :, :rows]
        else:
            mask = None if keep is None else keep[None, :, :rows]
        return merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout))
