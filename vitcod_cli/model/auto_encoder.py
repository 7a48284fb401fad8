"""The head auto-encoder of ViTCoD: Q or K squeezed through fewer heads (HPCA 2023, section IV-B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
    folded = (m @ weight.to(dtype).reshape(num_heads, -1)).reshape(weight.shape)
    head_dim = weight.shape[0] // num_heads
    shift = b.repeat_interleave(head_dim)
    if bias is not None:
        shift = shift + (m @ bias.to(dtype).reshape(num_heads, head_dim)).reshape(-1)
    return folded, shift
