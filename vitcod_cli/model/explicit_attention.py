"""Attention by explicit products, for training on a CPU in half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE_BYTES = 4 * 2**20
"""The batch is computed in slices whose logits take about so much, and stay in the cache."""


class ExplicitAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d) + M) V, for training on a CPU in half precision.

    There torch's fused attention takes twice as long in its backward pass (docs/benchmarks.md). Plain autograd
    would copy Q, K and V for every product that they are in.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, additive: Tensor | None) -> Tensor:
        """Of q, k, v [B, H, N, d] and the mask as what is added to logits [H, N, N]: [B, H, N, d]."""
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        probabilities = []
        for part in _parts(q):
            probabilities.append(_probabilities(q[part], k[part], additive))
            out[part] = probabilities[-1] @ v[part]
        ctx.save_for_backward(q, k, v, *probabilities)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v; the mask is fixed."""
        q, k, v, *probabilities = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        # torch.compile traces this under the autocast of the forward pass.
        with torch.autocast(q.device.type, enabled=False):
            for part, p in zip(_parts(q), probabilities, strict=True):
                grad_ = grad[part].contiguous()  # used twice, and as a view it would be copied at every use
                grad_v[part] = p.transpose(-2, -1) @ grad_
                by_p = grad_ @ v[part].transpose(-2, -1)
                by_logits = torch._softmax_backward_data(by_p, p, -1, p.dtype).mul_(_scale(q))
                grad_q[part] = by_logits @ k[part]
                grad_k[part] = by_logits.transpose(-2, -1) @ q[part]
        return grad_q, grad_k, grad_v, None


def _probabilities(q: Tensor, k: Tensor, additive: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + additive), [B, H, N, N]."""
    logits = (q * _scale(q)) @ k.transpose(-2, -1)
    return (logits if additive is None else logits.add_(additive)).softmax(dim=-1)


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


def _parts(q: Tensor) -> list[slice]:
    """Of the batch of ``q`` [B, H, N, d]."""
    batch, heads, tokens, _ = q.shape
    return slices(batch, max(SLICE_BYTES // (heads * tokens**2 * q.element_size()), 1))


def slices(length: int, size: int) -> list[slice]:
    """0 to ``length`` in parts of ``size``, the last of what is left."""
    return [slice(start, start + size) for start in range(0, length, size)]
