"""Attention that measures, on its way back, the damage that pruning each of its entries does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitcod_cli.model.auto_encoder import accurate_dtype
from vitcod_cli.model.kernels.base import Heads, Kernel, merge, slices

MIN_LEFT = 0.01
"""Least probability that other keys are taken to have: where a query sees one key alone, what it would
get without it is rounding."""

_SLICE_BYTES = {"cpu": 4 * 2**20}
"""Queries are taken so many at a time that their probabilities take about as much, and stay in a CPU's cache."""

_OTHER_BYTES = 256 * 2**20
"""The same elsewhere: a GPU wants few and large products."""


class DamageKernel(Kernel):
    """Explicit attention whose backward pass adds up the damage that pruning each entry does.

    Some queries at a time, in both passes, so that no array of [B, H, N, N] is ever whole.

    Args:
        total: floats [H, N, N]; squared derivatives by the logits over (1 - p)^2, summed over the images of
            each batch, are added to it.
    """

    def __init__(self, total: Tensor) -> None:
        super().__init__()
        self.total = total

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""
        attended: Tensor = _DamagedAttention.apply(heads.q, heads.k, heads.v, (keep, heads.bias, self.total))
        return merge(attended)


_Fixed = tuple[Tensor | None, Tensor | None, Tensor]
"""Mask bool, bias and total, [H, N, N] each."""


class _DamagedAttention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d) + M + bias) V; the backward pass adds the damage to ``total``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, fixed: _Fixed) -> Tensor:
        """Of q, k, v [B, H, N, d] and what is fixed: [B, H, N, d]."""
        ctx.save_for_backward(q, k, v)
        keep, bias, _ = ctx.fixed = fixed
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = _flat(q, k, v)
            out = torch.empty_like(values)
            for rows in _row_slices(v):
                probabilities = _probabilities(queries[:, rows], keys, keep, bias, rows)
                out[:, rows] = torch.bmm(probabilities.to(v.dtype), values)
        return out.view(v.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v; the probabilities are computed again."""
        q, k, v = ctx.saved_tensors
        keep, bias, total = ctx.fixed
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = _flat(q, k, v)
            by_output = gradient.to(v.dtype).contiguous().flatten(0, 1)
            by_q, by_k, by_v = (torch.zeros_like(x, dtype=accurate_dtype(x)) for x in (queries, keys, values))
            for rows in _row_slices(v):
                given = by_output[:, rows]
                if given.device.type == "cpu" and not given.any():
                    continue  # of the last block only the class token may be read
                probabilities = _probabilities(queries[:, rows], keys, keep, bias, rows)
                by_v += torch.bmm(probabilities.to(v.dtype).mT, given)
                by_p = torch.bmm(given, values.mT).to(probabilities.dtype)
                by_logits = torch._softmax_backward_data(by_p, probabilities, -1, probabilities.dtype)
                damage = by_logits / probabilities.neg_().add_(1).clamp_(min=MIN_LEFT)
                total[:, rows] += damage.square_().view(*v.shape[:2], *damage.shape[1:]).sum(dim=0)
                by_logits = by_logits.to(v.dtype)
                by_q[:, rows] = torch.bmm(by_logits, keys)
                by_k += torch.bmm(by_logits.mT, queries[:, rows])
            by_q *= _scale(q)
        of_q, of_k, of_v = (by.view(x.shape).to(x.dtype) for by, x in ((by_q, q), (by_k, k), (by_v, v)))
        return of_q, of_k, of_v, None


def _flat(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values, [B*H, N, d] each, contiguous: as views each product would copy them."""
    queries, keys, values = (x.to(v.dtype).contiguous().flatten(0, 1) for x in (q * _scale(q), k, v))
    return queries, keys, values


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


def _row_slices(v: Tensor) -> list[slice]:
    batch, heads, tokens, _ = v.shape
    most = _SLICE_BYTES.get(v.device.type, _OTHER_BYTES)
    return slices(tokens, max(most // (4 * batch * heads * tokens), 1))


def _probabilities(queries: Tensor, keys: Tensor, keep: Tensor | None, bias: Tensor | None, rows: slice) -> Tensor:
    """softmax over keys [B*H, N, d] for the queries of ``rows``, [B*H, n, d]: float32 [B*H, n, N]."""
    logits = torch.bmm(queries, keys.mT)
    if bias is not None:
        part = bias[:, rows].to(logits.dtype)
        logits.view(-1, *part.shape).add_(part)
    if keep is not None:
        part = keep[:, rows]
        logits.view(-1, *part.shape).masked_fill_(~part, -torch.inf)
    return torch.softmax(logits, dim=-1, dtype=accurate_dtype(logits))
