"""Attention that adds up damage: the plain one's values, gradients and damage, however few queries at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitcod_cli.attention import damage
from vitcod_cli.attention.damage import DamageKernel
from vitcod_cli.model.kernels.base import Heads, masked_logits, merge

B, H, N, D = 3, 2, 11, 5


def heads(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, N, D, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def mask() -> Tensor:
    keep = torch.rand(H, N, N, generator=torch.Generator().manual_seed(1)) < 0.5
    return keep | torch.eye(N, dtype=torch.bool)


def weights() -> Tensor:
    """Of the outputs; nobody reads some of the queries, as in a last block."""
    given = torch.randn(B, N, H * D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given[:, 4:8] = 0
    return given


def plain(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, damage [H, N, N] and gradients by autograd, from the definitions."""
    logits = masked_logits(q, k, keep)
    p = logits.softmax(dim=-1)
    out = merge(p @ v)
    grads = torch.autograd.grad((out * weights()).sum(), [logits, q, k, v])
    worth = (grads[0] / (1 - p).clamp(min=damage.MIN_LEFT)).square().sum(dim=0)
    return out.detach(), worth.detach(), list(grads[1:])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 3, N])
def test_it_is_plain_attention_with_its_damage(monkeypatch: pytest.MonkeyPatch, rows: int, masked: bool) -> None:
    monkeypatch.setitem(damage._SLICE_BYTES, "cpu", 4 * B * H * N * rows)
    keep = mask() if masked else None
    q, k, v = heads()
    expected, worth, grads = plain(q, k, v, keep)
    total = torch.full((H, N, N), 2.0, dtype=torch.float64)
    out = DamageKernel(total)(Heads(q, q, k, v, None), keep)
    torch.testing.assert_close(out.detach(), expected)
    (out * weights()).sum().backward()
    torch.testing.assert_close(total - 2, worth)
    for one, grad in zip((q, k, v), grads, strict=True):
        torch.testing.assert_close(one.grad, grad)
    if keep is not None:
        assert (total[~keep] == 2).all()  # to the bit: ranks are told apart by it


def test_half_precision_keeps_probabilities_and_damage_in_float32() -> None:
    q, k, v = heads(torch.bfloat16)
    _, worth, _ = plain(*(x.detach().double().requires_grad_() for x in (q, k, v)), None)
    total = torch.zeros(H, N, N)
    with torch.autocast("cpu", torch.bfloat16):
        out = DamageKernel(total)(Heads(q, q, k, v, None), None)
    assert out.dtype == torch.bfloat16
    (out * weights()).sum().backward()
    assert [x.grad.dtype for x in (q, k, v) if x.grad is not None] == [torch.bfloat16] * 3
    torch.testing.assert_close(total.double(), worth, rtol=0.1, atol=0.02 * float(worth.max()))
