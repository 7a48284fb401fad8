"""Attention by explicit products, for training on a CPU in half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitcod_cli.model.kernels.base import slices

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
        qkv = q.new_empty(3, *q.shape)  # one contiguous copy, for this pass and the backward one
        torch.mul(q, _scale(q.shape), out=qkv[0])
        qkv[1], qkv[2] = k, v
        qs, ks, vs = qkv.flatten(1, 2)
        out = torch.empty_like(vs)
        probabilities = []
        for part in _parts(q.shape, q.element_size()):
            logits = torch.bmm(qs[part], ks[part].mT)
            if additive is not None:
                logits.view(-1, *additive.shape).add_(additive)
            probabilities.append(logits.softmax(dim=-1))
            torch.bmm(probabilities[-1], vs[part], out=out[part])
        ctx.save_for_backward(qkv, *probabilities)
        return out.view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v; the mask is fixed."""
        qkv, *probabilities = ctx.saved_tensors
        grads = torch.empty_like(qkv)
        qs, ks, vs = qkv.flatten(1, 2)
        grad_q, grad_k, grad_v = grads.flatten(1, 2)
        # torch.compile traces this under the autocast of the forward pass.
        with torch.autocast(grad.device.type, enabled=False):
            grad_out = grad.contiguous().flatten(0, 1)
            for part, p in zip(_parts(grad.shape, grad.element_size()), probabilities, strict=True):
                torch.bmm(p.mT, grad_out[part], out=grad_v[part])
                by_p = torch.bmm(grad_out[part], vs[part].mT)
                by_logits = torch._softmax_backward_data(by_p, p, -1, p.dtype)
                torch.bmm(by_logits, ks[part], out=grad_q[part])
                torch.bmm(by_logits.mT, qs[part], out=grad_k[part])
            grad_q.mul_(_scale(grad.shape))
        return grads[0], grads[1], grads[2], None


def _scale(shape: torch.Size) -> float:
    return float(shape[-1] ** -0.5)


def _parts(shape: torch.Size, itemsize: int) -> list[slice]:
    """Of the images of Q [B, H, N, d], as slices of B*H."""
    batch, heads, tokens, _ = shape
    return slices(batch * heads, max(SLICE_BYTES // (heads * tokens**2 * itemsize), 1) * heads)
