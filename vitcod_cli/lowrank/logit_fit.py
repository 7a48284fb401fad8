"""Low-rank heads that reproduce the attention logits, fitted to second moments alone.

A low-rank projection is Q = (D x I) Z: H heads mixed from h latent ones. For queries x with second
moment S and keys y with covariance K, the mean squared error of a head's logits x^T B y, with
B = W_q^T W_k, is || S^1/2 (B - B_hat) K^1/2 ||_F^2: a smooth function of D and Z that needs no image
once the moments are there, and that is blind to every invertible gauge of a head. A few hundred
quasi-Newton steps on it go far beyond what rotations and PCA alone can reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli.lowrank.align import mix_heads, principal_heads
from vitcod_cli.lowrank.rotation import Rotation


@dataclass
class LatentHeads:
    """One projection's heads [H, d, n] as ``mixing`` [H, h] of ``latent`` heads [h, d, n]."""

    mixing: Tensor
    latent: Tensor

    @classmethod
    def principal(cls, heads: Tensor, rank: int) -> LatentHeads:
        """The best ``rank`` latent heads for ``heads`` [H, d, n] in the least-squares sense."""
        basis = principal_heads(heads, rank)
        return cls(basis, mix_heads(basis.T, heads))

    @classmethod
    def identity(cls, heads: Tensor) -> LatentHeads:
        """A projection that is not compressed: each head is its own latent head."""
        return cls(torch.eye(len(heads), dtype=heads.dtype, device=heads.device), heads.clone())

    def heads(self) -> Tensor:
        """The mixed heads [H, d, n]."""
        return mix_heads(self.mixing, self.latent)

    def orthonormal(self) -> LatentHeads:
        """The same heads with orthonormal columns of ``mixing``, so that its transpose encodes."""
        basis, triangle = torch.linalg.qr(self.mixing)
        return LatentHeads(basis, mix_heads(triangle, self.latent))


def logit_overlap(q: Tensor, k: Tensor, other_q: Tensor, other_k: Tensor) -> Tensor:
    """<q_h^T k_h, other_q_h^T other_k_h>_F for every head, [H], without forming the n x m products.

    All arguments are [H, d, n] (q) and [H, d, m] (k) in moment-weighted coordinates.
    """
    return ((q @ other_q.mT) * (k @ other_k.mT)).sum(dim=(1, 2))


def logit_error(q: Tensor, k: Tensor, target_q: Tensor, target_k: Tensor) -> Tensor:
    """|| q_h^T k_h - target ||_F^2 for every head, [H]; arguments as in :func:`logit_overlap`."""
    cross = logit_overlap(q, k, target_q, target_k)
    return logit_overlap(q, k, q, k) - 2 * cross + logit_overlap(target_q, target_k, target_q, target_k)


@dataclass(frozen=True)
class Fit:
    """Latent heads of Q and K, and the relative squared logit error before and after the fit."""

    q: LatentHeads
    k: LatentHeads
    error_before: float
    error_after: float


def fit_latent_heads(
    start_q: LatentHeads,
    start_k: LatentHeads,
    target_q: Tensor,
    target_k: Tensor,
    *,
    steps: int,
    rotation: Rotation | None = None,
) -> Fit:
    """Fit latent heads to the logits of ``target_q`` [H, d, n] and ``target_k`` [H, d, m] by L-BFGS.

    Args:
        start_q, start_k: where to begin; an uncompressed side (square ``mixing``) keeps its mixing.
        steps: L-BFGS iterations. The result is never worse than the start.
        rotation: a rotary embedding behind the heads: the error is then the mean over all pairs of positions.
    """
    overlap = logit_overlap if rotation is None else rotation.overlap
    energy = overlap(target_q, target_k, target_q, target_k).sum()
    if energy == 0:
        return Fit(start_q, start_k, 0.0, 0.0)
    sides = [start_q, start_k]
    # L-BFGS flattens with view(), so everything must be contiguous.
    mixing = [side.mixing.clone(memory_format=torch.contiguous_format) for side in sides]
    latent = [side.latent.clone(memory_format=torch.contiguous_format).requires_grad_() for side in sides]
    for matrix in mixing:
        matrix.requires_grad_(matrix.shape[0] != matrix.shape[1])
    free = [tensor for tensor in (*mixing, *latent) if tensor.requires_grad]

    def error() -> Tensor:
        q, k = (mix_heads(m, z) for m, z in zip(mixing, latent, strict=True))
        # logit_error without its constant part, which need not be computed again
        own, cross = overlap(q, k, q, k), overlap(q, k, target_q, target_k)
        return 1 + (own - 2 * cross).sum() / energy

    optimizer = torch.optim.LBFGS(
        free, max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-12
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = error()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with torch.enable_grad():
        before = float(error().detach())
        if steps:
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        after = float(error().detach())
    if not after <= before:  # also when NaN
        return Fit(start_q, start_k, before, before)
    fitted = [LatentHeads(m.detach(), z.detach()) for m, z in zip(mixing, latent, strict=True)]
    return Fit(fitted[0], fitted[1], before, after)
