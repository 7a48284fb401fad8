"""The fit of latent heads to the attention logits."""

from __future__ import annotations

import pytest
import torch

from vitcod_cli.lowrank.align import mix_heads
from vitcod_cli.lowrank.logit_fit import LatentHeads, fit_latent_heads, logit_error


def random_heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def test_logit_error_is_the_squared_difference_of_the_products() -> None:
    q, k, target_q, target_k = (random_heads(3, 4, n, seed=i) for i, n in enumerate((7, 6, 7, 6)))
    plain = (q.mT @ k - target_q.mT @ target_k).square().sum(dim=(1, 2))
    assert torch.allclose(logit_error(q, k, target_q, target_k), plain, rtol=1e-10)


def test_logit_error_is_the_mean_squared_error_over_the_data() -> None:
    """In moment-weighted coordinates: E over queries x and keys y of (x^T B y - x^T B_hat y)^2."""
    x, y = random_heads(50, 5, seed=1), random_heads(60, 4, seed=2)
    w_q, w_k, v_q, v_k = (random_heads(2, 3, n, seed=3 + i) for i, n in enumerate((5, 4, 5, 4)))
    direct = sum(
        (((x @ w_q[h].T) @ (y @ w_k[h].T).T) - ((x @ v_q[h].T) @ (y @ v_k[h].T).T)).square().mean()
        for h in range(2)
    )

    def root(moment: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(moment)

    s, t = root(x.T @ x / len(x)), root(y.T @ y / len(y))
    assert torch.allclose(logit_error(v_q @ s, v_k @ t, w_q @ s, w_k @ t).sum(), direct, rtol=1e-9)


def test_logits_of_low_rank_heads_are_recovered_whatever_their_gauge() -> None:
    """Any invertible A on q with its inverse transpose on k hides the low rank from PCA, not from the fit."""
    mixing_q, mixing_k = random_heads(3, 2, seed=1), random_heads(3, 2, seed=2)
    q, k = mix_heads(mixing_q, random_heads(2, 4, 12, seed=3)), mix_heads(mixing_k, random_heads(2, 4, 11, seed=4))
    gauge = torch.eye(4, dtype=torch.double) + 0.3 * random_heads(3, 4, 4, seed=5)
    q, k = gauge @ q, torch.linalg.inv(gauge).mT @ k
    fit = fit_latent_heads(LatentHeads.principal(q, 2), LatentHeads.principal(k, 2), q, k, steps=500)
    assert fit.error_before > 1e-2
    assert fit.error_after < 1e-4


@pytest.mark.parametrize("steps", [0, 3])
def test_the_fit_is_never_worse_than_its_start(steps: int) -> None:
    q, k = random_heads(6, 4, 20, seed=1), random_heads(6, 4, 20, seed=2)
    fit = fit_latent_heads(LatentHeads.principal(q, 3), LatentHeads.principal(k, 3), q, k, steps=steps)
    assert fit.error_after <= fit.error_before


def test_an_uncompressed_side_keeps_its_mixing() -> None:
    q, k = random_heads(3, 4, 20, seed=1), random_heads(3, 4, 20, seed=2)
    fit = fit_latent_heads(LatentHeads.principal(q, 2), LatentHeads.identity(k), q, k, steps=50)
    assert torch.equal(fit.k.mixing, torch.eye(3, dtype=torch.double))
    assert fit.error_after < fit.error_before


def test_zero_heads_give_no_nan() -> None:
    zero = torch.zeros(3, 4, 6, dtype=torch.double)
    fit = fit_latent_heads(LatentHeads.principal(zero, 2), LatentHeads.principal(zero, 2), zero, zero, steps=10)
    assert fit.error_after == 0.0
    assert fit.q.heads().isfinite().all()


def test_orthonormal_mixing_gives_the_same_heads() -> None:
    heads = LatentHeads(random_heads(4, 2), random_heads(2, 3, 5))
    turned = heads.orthonormal()
    assert torch.allclose(turned.heads(), heads.heads())
    assert torch.allclose(turned.mixing.T @ turned.mixing, torch.eye(2, dtype=torch.double), atol=1e-12)
