"""What a rotary embedding leaves of the freedom of a head, and of its logits over all pairs of positions.

It turns channels of Q and K in pairs: with a pair as one complex number z, token i's is z exp(i theta_i). The
logit of tokens i and j is then sum_f Re(conj(q_f) k_f exp(i (theta_jf - theta_if))) over pairs f. So a head may be
turned before it by any matrix that is a phase for each pair, and by no other; and constants that are added to keys
are seen, as they turn with their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli.lowrank.moments import query_weights
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.passes import rotary_embedding


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding that is the same for all heads.

    Attributes:
        half: a pair is channels (c, c + d/2); else (2c, 2c + 1).
        sums, differences: complex [d/2, d/2], means of exp(i (phi_f + phi_g)) and exp(i (phi_f - phi_g)) over all
            pairs of tokens, phi being how far the one is turned against the other.
    """

    half: bool
    sums: Tensor
    differences: Tensor

    @classmethod
    def of(cls, model: Transformer, layer: SparseLowRankAttention) -> Rotation | None:
        """That of ``model``; None where it has none."""
        embedding = rotary_embedding(model)
        if embedding is None:
            return None
        half = bool(getattr(layer, "rotate_half", False))
        sine, cosine = embedding.detach().double().chunk(2, dim=-1)
        pairs = torch.complex(*(_first(part, half) for part in (cosine, sine)))
        prefix = model.num_prefix_tokens
        phases = torch.cat([pairs.new_ones(prefix, pairs.shape[1]), pairs])
        weights = query_weights(len(phases), prefix, phases.device).to(phases)
        even = torch.full_like(weights, 1 / len(phases))
        means = [
            _mean_product(phases, other, even) * _mean_product(phases, other, weights).conj()
            for other in (phases, phases.conj())
        ]
        return cls(half, *means)

    def complex_heads(self, heads: Tensor) -> Tensor:
        """Heads [H, d, n] by pairs of channels: complex [H, d/2, n]."""
        return torch.complex(_first(heads.mT, self.half).mT, _second(heads.mT, self.half).mT)

    def best_turns(self, cross: Tensor) -> Tensor:
        """Of the turns that heads may have, those [H, d, d] with the largest product with ``cross`` [H, d, d]."""
        ours = torch.eye(cross.shape[-1], dtype=cross.dtype, device=cross.device)
        first, second = _first(ours, self.half).mT, _second(ours, self.half).mT  # [d/2, d] each
        blocks = [
            [torch.einsum("fi,hij,fj->hf", row, cross, column) for column in (first, second)]
            for row in (first, second)
        ]
        turn = torch.complex(blocks[0][0] + blocks[1][1], blocks[1][0] - blocks[0][1])
        turn = torch.where(turn.abs() > 0, turn / turn.abs().clamp_min(torch.finfo(cross.dtype).tiny), 1)
        cosine, sine = turn.real, turn.imag
        along = torch.einsum("hf,fi,fj->hij", cosine, first, first) + torch.einsum(
            "hf,fi,fj->hij", cosine, second, second
        )
        across = torch.einsum("hf,fi,fj->hij", sine, second, first) - torch.einsum(
            "hf,fi,fj->hij", sine, first, second
        )
        return along + across

    def overlap(self, q: Tensor, k: Tensor, other_q: Tensor, other_k: Tensor) -> Tensor:
        """Mean over all pairs of tokens of what :func:`~vitcod_cli.lowrank.logit_fit.logit_overlap` gives; [H]."""
        q, k, other_q, other_k = (self.complex_heads(heads) for heads in (q, k, other_q, other_k))
        by_sums = (q @ other_q.mT).conj() * (k @ other_k.mT) * self.sums
        by_differences = (q @ other_q.mH).conj() * (k @ other_k.mH) * self.differences
        return 0.5 * (by_sums + by_differences).sum(dim=(1, 2)).real


def _mean_product(phases: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i phases_if other_ig: complex [d/2, d/2]."""
    return (phases * weights[:, None]).mT @ other


def _first(x: Tensor, half: bool) -> Tensor:
    """The first channel of every pair, of x [..., d]: [..., d/2]."""
    return x[..., : x.shape[-1] // 2] if half else x[..., 0::2]


def _second(x: Tensor, half: bool) -> Tensor:
    return x[..., x.shape[-1] // 2 :] if half else x[..., 1::2]
