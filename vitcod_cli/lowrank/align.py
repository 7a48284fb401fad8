"""Head alignment: one orthogonal matrix for Q and K of each head (Procrustes), which leaves the output unchanged.

Attention sees only q_h . k_h, so each head may be rotated by any orthogonal R_h, the same for its q
and its k, and any constant may be added to all keys of an image (softmax does not see it). The
auto-encoder mixes heads channel by channel, so it profits when channel c means the same in every
head: that is what the free rotations are chosen for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli.lowrank.rotation import Rotation
from vitcod_cli.model.attention import SparseLowRankAttention


@dataclass(frozen=True)
class Alignment:
    """Rotations [H, d, d], and the share of energy that rank-h heads keep before and after."""

    rotations: Tensor
    kept_before: float
    kept_after: float


def head_gram(heads: Tensor) -> Tensor:
    """[H, H] inner products of the heads of ``heads`` [H, d, n], summed over channels and data."""
    flat = heads.flatten(1)
    return flat @ flat.T


def principal_heads(heads: Tensor, rank: int) -> Tensor:
    """The ``rank`` orthonormal combinations of heads [H, rank] that keep the most of ``heads`` [H, d, n]."""
    basis: Tensor = torch.linalg.eigh(head_gram(heads)).eigenvectors[:, -rank:]
    return basis


def mix_heads(matrix: Tensor, heads: Tensor) -> Tensor:
    """Combine heads: ``matrix`` [G, H] times ``heads`` [H, d, n] gives [G, d, n]."""
    return torch.einsum("gh,hdn->gdn", matrix, heads)


def align_heads(
    sides: list[Tensor],
    ranks: list[int],
    *,
    iterations: int = 100,
    tolerance: float = 1e-6,
    rotation: Rotation | None = None,
) -> Alignment:
    """Alternate the best rank-h reconstruction over heads with a Procrustes rotation per head.

    Args:
        sides: the heads of the projections that are compressed (Q, K or both), each [H, d, n] in
            coordinates in which plain sums of squares are expectations over the data, that is the
            rows of the projection times a square root of the second moment of its input.
        ranks: how many heads each is compressed to.
        iterations: alternations at most. tolerance: stop when the kept energy gains less.
        rotation: a rotary embedding behind the heads, which leaves them fewer turns.

    Returns:
        The rotations; the identity when nothing can be gained or all heads are zero.
    """
    num_heads, head_dim = sides[0].shape[:2]
    rotations = torch.eye(head_dim, dtype=sides[0].dtype, device=sides[0].device).repeat(num_heads, 1, 1)
    total = sum(float(side.square().sum()) for side in sides)
    if total == 0:
        return Alignment(rotations, 1.0, 1.0)
    kept: list[float] = []
    for _ in range(iterations):
        cross, energy = torch.zeros_like(rotations), 0.0
        for side, rank in zip(sides, ranks, strict=True):
            rotated = rotations @ side
            basis = principal_heads(rotated, rank)
            reconstruction = mix_heads(basis @ basis.T, rotated)
            energy += float(mix_heads(basis.T, rotated).square().sum())
            cross += reconstruction @ side.transpose(1, 2)
        kept.append(energy / total)
        if len(kept) > 1 and kept[-1] - kept[-2] < tolerance:
            break
        if rotation is not None:
            rotations = rotation.best_turns(cross)
            continue
        u, _, vh = torch.linalg.svd(cross)
        rotations = u @ vh
    return Alignment(rotations, kept[0], kept[-1])


@torch.no_grad()
def rotate_heads(attention: SparseLowRankAttention, rotations: Tensor) -> None:
    """Fold ``rotations`` [H, d, d] into the projections of Q and K; the layer's function stays the same.

    Raises:
        ValueError: if a norm on Q and K stands between the rows and the product.
    """
    if not attention.foldable:
        raise ValueError("a layer with a norm on Q and K has no rotation gauge")
    for letter in "qk":
        for parameter in attention.projection(letter):
            if parameter is not None:
                heads = parameter.double().reshape(attention.num_heads, attention.head_dim, -1)
                parameter.copy_((rotations.to(heads) @ heads).reshape(parameter.shape))
