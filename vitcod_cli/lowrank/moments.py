"""Second moments of the tokens that enter each attention layer, in one pass over a few images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.kernels.base import Heads, masked_logits
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.layers import attentions, using
from vitcod_cli.model.passes import rotary_embedding
from vitcod_cli.reporting import Progress

CLASS_TOKEN_SHARE = 0.5
"""Weight of the class token among the queries: it is one row of 197, but the one that is read out."""


ATTENDED_SHARE = 0.5
"""Weight of the attention that a key receives, against all keys alike."""


@dataclass
class TokenMoments:
    """What one attention layer's fit needs to know of its data, float64; memory grows with C^2.

    Attributes:
        query: [C+1, C+1], E[x x^T] of the tokens as queries, with a 1 appended for the bias.
        key: [C, C], the covariance of the tokens of an image around their mean, averaged over
            images: half of it over all tokens alike, half over the tokens as the heads attend to
            them. The mean is left out because softmax does not see a constant added to the logits
            of a row. Of layers with a rotary embedding [C+1, C+1], E[y y^T] with a 1 appended: there
            constants turn with their tokens, and softmax does see them.
        heads: for ``"q"`` and ``"k"`` the sums [H+1, H+1] over channels of one projection's
            vectors across heads, with a 1 appended: all that PCA over heads needs.
    """

    query: Tensor
    key: Tensor
    heads: dict[str, Tensor]

    @classmethod
    def zeros(cls, dim: int, num_heads: int, device: torch.device, *, rotated: bool = False) -> TokenMoments:
        """Nothing seen yet; ``rotated``: whether the layer has a rotary embedding."""

        def zero(n: int) -> Tensor:
            return torch.zeros(n, n, dtype=torch.float64, device=device)

        return cls(zero(dim + 1), zero(dim + rotated), {letter: zero(num_heads + 1) for letter in "qk"})

    def tensors(self) -> list[Tensor]:
        """All tensors, for reductions."""
        return [self.query, self.key, *self.heads.values()]


class MomentKernel(FusedKernel):
    """Fused attention that sums the moments of one layer over batches."""

    needs_all_rows = True

    def __init__(self, attention: SparseLowRankAttention, num_prefix_tokens: int, rotated: bool = False) -> None:
        super().__init__()
        width = attention.projection("q")[0].shape[1]
        self.num_prefix_tokens, self.rotated = num_prefix_tokens, rotated
        self.moments = TokenMoments.zeros(width, attention.num_heads, attention.device, rotated=rotated)

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""
        self._add(heads, keep)
        return super().forward(heads, keep, dropout)

    def _add(self, heads: Heads, keep: Tensor | None) -> None:
        with torch.autocast(heads.tokens.device.type, enabled=False):
            x, q, k = heads.tokens.float(), heads.q.float(), heads.k.float()
            batch, tokens, _ = x.shape
            weights = query_weights(tokens, self.num_prefix_tokens, x.device)
            one = torch.cat([x, x.new_ones(batch, tokens, 1)], dim=-1)
            self.moments.query += _gram((one * weights.sqrt()[:, None]).flatten(0, 1))
            keys = one if self.rotated else x
            self.moments.key += self._key_moment(keys, masked_logits(q, k, keep, heads.bias))
            for letter, part in (("q", q), ("k", k)):
                vectors = part.permute(0, 2, 3, 1).reshape(-1, part.shape[1])
                one = torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=-1)
                self.moments.heads[letter] += _gram(one) / (tokens * part.shape[-1])

    def _key_moment(self, x: Tensor, logits: Tensor) -> Tensor:
        """Covariance of the keys' tokens, summed over the batch: sum_j w_j x_j x_j^T - m m^T, or without m."""
        received = logits.softmax(dim=-1).mean(dim=2)  # [B, H, N]
        attended = (1 - ATTENDED_SHARE) * received.new_full((), 1 / x.shape[1]) + ATTENDED_SHARE * received.mean(1)
        second = _gram((x * attended.sqrt()[..., None]).flatten(0, 1))
        if self.rotated:
            return second
        means = torch.einsum("bhn,bnc->bhc", received, x).flatten(0, 1)
        attended_mean = _gram(means) / received.shape[1]
        return second - (1 - ATTENDED_SHARE) * _gram(x.mean(dim=1)) - ATTENDED_SHARE * attended_mean


def query_weights(num_tokens: int, num_prefix_tokens: int, device: torch.device) -> Tensor:
    """What each token counts as a query, float32 [N], 1 in all."""
    share = CLASS_TOKEN_SHARE if 0 < num_prefix_tokens < num_tokens else 0.0
    weights = torch.full((num_tokens,), (1 - share) / num_tokens, device=device)
    weights[:num_prefix_tokens] += share / max(num_prefix_tokens, 1)
    return weights


def _gram(rows: Tensor) -> Tensor:
    # One batch is summed in float32, batches in float64: no drift over many images.
    return (rows.T @ rows).double()


@torch.inference_mode()
def collect_moments(
    model: Transformer,
    batches: Iterable[Tensor],
    *,
    num_prefix_tokens: int,
    progress: Progress | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[TokenMoments]:
    """Mean moments of every attention layer over all images of all processes.

    Args:
        model: the dense model; left in eval mode.
        batches: normalised images [B, 3, H, W].
        num_prefix_tokens: how many tokens come before the patches.
        progress: advanced by the images of each batch.
        autocast: gives the context for one forward pass.

    Raises:
        VitcodError: if the model yields values that are not finite.
    """
    model.eval()
    layers, rotated = attentions(model), rotary_embedding(model) is not None
    kernels = [MomentKernel(layer, num_prefix_tokens, rotated=rotated) for layer in layers]
    count = torch.zeros(1, dtype=torch.float64, device=layers[0].device)
    with using(model, lambda index: kernels[index]):
        for images in batches:
            with autocast():
                model(images)
            count += len(images)
            if progress is not None:
                progress.advance(len(images))
    distributed.all_reduce_sum(count)
    for kernel in kernels:
        for tensor in kernel.moments.tensors():
            distributed.all_reduce_sum(tensor).div_(count)
    for index, kernel in enumerate(kernels):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in kernel.moments.tensors()):
            raise VitcodError(
                f"The tokens that enter block {index + 1} are not finite, so the weights or images are broken, or "
                "--precision float16 overflows; try --precision float32, else another checkpoint."
            )
    return [kernel.moments for kernel in kernels]
