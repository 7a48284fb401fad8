"""The head auto-encoder of ViTCoD: Q or K squeezed through fewer heads (HPCA 2023, section IV-B)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitcod_cli.artifacts.model_config import SvdType


def compressed_heads(num_heads: int) -> int:
    """Width of the bottleneck: half of the heads, rounded up."""
    return math.ceil(num_heads / 2)


def projections(svd_type: SvdType) -> tuple[str, ...]:
    """The projections that ``svd_type`` treats: some of ``"q"`` and ``"k"``."""
    return tuple(letter for letter in "qk" if svd_type != "none" and letter in svd_type.rsplit("_", 1)[-1])


def init_published(encoder: nn.Linear, decoder: nn.Linear) -> None:
    """The published initialisation: truncated normal weights (std 0.02), zero biases."""
    for linear in (encoder, decoder):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)


def accurate_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for a float64 tensor, else float32: what small sums over heads are computed in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def head_map(encoder: nn.Linear, decoder: nn.Linear) -> tuple[Tensor, Tensor]:
    """``decoder(encoder(.))`` as one affine map over heads, in float32 (float64 for a float64 model).

    Returns:
        M = D E of shape [H, H] and b = D b_e + b_d of shape [H], with x_hat = M x + b for every
        vector x of one channel across the heads.
    """
    with torch.autocast(encoder.weight.device.type, enabled=False):
        dtype = accurate_dtype(encoder.weight)
        d = decoder.weight.to(dtype)
        return d @ encoder.weight.to(dtype), d @ encoder.bias.to(dtype) + decoder.bias.to(dtype)


def fold_rows(weight: Tensor, bias: Tensor | None, m: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Fold an affine map over heads into the rows of a projection that yields those heads.

    Args:
        weight: [H*d, C] rows of the qkv weight for Q (or K). bias: [H*d] or None.
        m: [H, H]. b: [H], the same constant for all channels of a head.

    Returns:
        The weight [H*d, C] and bias [H*d] of the projection that yields M q + b directly, in
        float32 (or float64 where the weight is).
    """
    num_heads = m.shape[0]
    dtype = accurate_dtype(weight)
    m, b = m.to(dtype), b.to(dtype)
    head_dim = weight.shape[0] // num_heads
    with torch.autocast(weight.device.type, enabled=False):
        folded = (m @ weight.to(dtype).reshape(num_heads, -1)).reshape(weight.shape)
        shift = b.repeat_interleave(head_dim)
        if bias is not None:
            shift = shift + (m @ bias.to(dtype).reshape(num_heads, head_dim)).reshape(-1)
    return folded, shift


class Reconstruction(torch.autograd.Function):
    """x_hat = M x + b over heads, with the norm of x - x_hat; remembers ``x`` alone.

    Left to autograd, a training step would keep float32 copies of Q and K, of their reconstructions and of
    the differences for every block; here the backward pass computes them again, which is cheap.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Of x [B, H, N, d], m [H, H] and b [H]: x_hat like ``x``, and ||x - x_hat||_2 in the dtype of ``m``."""
        padded, change = _with_ones(x, m.dtype), _change(m, b)
        difference = torch.bmm(change.expand(x.shape[0], -1, -1), padded)
        norm = torch.linalg.vector_norm(difference)
        ctx.save_for_backward(x, m, b, norm)
        return difference.add_(padded[:, :-1]).to(x.dtype).view(x.shape), norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hat: Tensor, grad_norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, m and b; that of a norm of 0 is 0, as torch has it."""
        x, m, b, norm = ctx.saved_tensors
        # torch.compile traces this under the autocast of the forward pass.
        with torch.autocast(x.device.type, enabled=False):
            padded, change = _with_ones(x, m.dtype), _change(m, b)
            scale = torch.where(norm > 0, grad_norm / norm, 0.0)
            pull = torch.bmm((scale * change).expand(x.shape[0], -1, -1), padded)  # of the norm by x_hat
            grad = grad_hat.to(m.dtype).flatten(2)
            grad_mb = (torch.bmm(grad, padded.mT) + torch.bmm(pull, padded.mT)).sum(dim=0)
            grad_x = torch.bmm(m.T.expand(x.shape[0], -1, -1), grad)
            grad_x = grad_x.baddbmm_(change[:, :-1].T.expand(x.shape[0], -1, -1), pull)
        return grad_x.to(x.dtype).view(x.shape), grad_mb[:, :-1], grad_mb[:, -1]


_SCALE = 2.0**-6
"""Of tokens that are multiplied by themselves: float16 can then hold the sum over 10^5 of them, exactly scaled."""


class FoldedReconstruction(torch.autograd.Function):
    """The norm of x - x_hat where x_hat comes from folded weights and x is never computed.

    x - x_hat is an affine map of the layer's tokens, so the norm follows from their mean and scatter, and its
    gradient from one product with the tokens: no pass over Q and K at all. Centred first, for the tokens of
    trained models have channels whose mean is far larger than what varies.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """||W_p z + b_p||_2 over all tokens z, for each projection p.

        Args:
            tokens: [..., C]; its dtype is that of the large products.
            weight: [P, R, C] and bias [P, R]: W_p and b_p, in float32 or float64, as is the result [P].
        """
        flat = tokens.reshape(-1, tokens.shape[-1])
        mean = flat.mean(dim=0, dtype=weight.dtype)
        minus_mean = (-_SCALE * mean).to(flat.dtype)
        offset = _SCALE * mean + minus_mean  # what rounding the mean leaves behind, in every token
        centred = torch.add(minus_mean, flat, alpha=_SCALE)
        scatter = (centred.mT @ centred).to(weight.dtype).addr_(offset, offset, alpha=-len(flat))
        by_scatter = (weight.to(flat.dtype) @ scatter.to(flat.dtype)).to(weight.dtype) / _SCALE**2
        at_mean = weight @ mean + bias
        squares = (by_scatter * weight).sum(dim=(1, 2)) + len(flat) * at_mean.square().sum(dim=1)
        norms = squares.clamp_min(0).sqrt()
        ctx.save_for_backward(centred, weight, mean, offset, by_scatter, at_mean, norms)
        ctx.shape = tokens.shape
        return norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the tokens, W and b; that of a norm of 0 is 0, as torch has it."""
        centred, weight, mean, offset, by_scatter, at_mean, norms = ctx.saved_tensors
        dtype = centred.dtype
        # torch.compile traces this under the autocast of the forward pass.
        with torch.autocast(centred.device.type, enabled=False):
            pull = torch.where(norms > 0, grad / norms, 0.0)[:, None]
            grad_bias = len(centred) * pull * at_mean
            grad_weight = torch.addcmul(grad_bias[..., None] * mean, pull[..., None], by_scatter)
            pulled = (pull[..., None] * weight).flatten(0, 1)
            square = (pulled.mT.to(dtype) @ weight.flatten(0, 1).to(dtype)).to(weight.dtype) / _SCALE
            row = pulled.mT @ at_mean.flatten() - offset @ square
            grad_tokens = torch.addmm(row.to(dtype), centred, square.to(dtype))
        return grad_tokens.view(ctx.shape), grad_weight, grad_bias


def _with_ones(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, H, N, d] with a head of ones behind it, [B, H + 1, N*d]: an affine map becomes one product."""
    padded = x.new_empty(x.shape[0], x.shape[1] + 1, *x.shape[2:], dtype=dtype)
    padded[:, :-1] = x
    padded[:, -1] = 1
    return padded.flatten(2)


def _change(m: Tensor, b: Tensor) -> Tensor:
    """[M - 1 | b], [H, H + 1]: what an auto-encoder does to a vector, without the vector."""
    return torch.cat([m - torch.eye(len(m), dtype=m.dtype, device=m.device), b[:, None]], dim=1)
