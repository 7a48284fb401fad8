"""What an ONNX file holds in place of folded weights and masks of numbers: less, for a runtime to unfold once.

Runtimes compute whatever depends on nothing but constants when they load the file. So the file holds the
low-rank factors of the Q and K projections and a bit for each entry of a mask; the products and the numbers
that are added to logits exist in memory only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import PlainAttention, Transformer
from vitcod_cli.model.kernels.base import Heads, Kernel, merge
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.kernels.planned import AttentionPlan, PlannedKernel
from vitcod_cli.model.layers import attentions

_BITS = (128, 64, 32, 16, 8, 4, 2, 1)
"""Of a byte, as ``numpy.packbits`` fills it."""


def use_onnx_form(model: Transformer, projections: Sequence[LowRankProjection | None], *, portable: bool) -> None:
    """Give the layers of a prepared ``model`` the parts that an ONNX file holds; it is for tracing afterwards.

    Args:
        projections: of its layers, made before it was folded.
        portable: whether it may use standard operators only.
    """
    for layer, projection in zip(attentions(model), projections, strict=True):
        if projection is not None:
            assert isinstance(layer.qkv, nn.Linear)
            projection.bias = layer.qkv.bias
            layer.add_module("qkv", projection)
        kernel = layer.kernel
        if isinstance(kernel, PlannedKernel):
            layer.kernel = PlannedOnnxKernel(kernel.plan)
        else:
            assert isinstance(kernel, FusedKernel)  # there is no other for inference
            layer.kernel = OnnxKernel(*_mask_and_bias(kernel.additive), portable=portable)


def low_rank_projections(model: Transformer) -> list[LowRankProjection | None]:
    """For every layer its Q, K and V projection in parts; None where that isn't smaller, or can't be folded."""
    return [LowRankProjection.of(layer) for layer in attentions(model)]


class LowRankProjection(nn.Module):
    """Stands for a folded ``qkv``: its weight [3*H*d, C] is a product, for Q and K, of what is kept.

    Args:
        weights: of Q, K and V: [H*d, C], or [h*d, C] in front of a decoder.
        decoders: [H, h] for each of them, or None.
    """

    def __init__(self, weights: Sequence[Tensor], decoders: Sequence[Tensor | None]) -> None:
        super().__init__()
        for index, (weight, decoder) in enumerate(zip(weights, decoders, strict=True)):
            self.register_buffer(f"weight_{index}", weight)
            self.register_buffer(f"decoder_{index}", decoder)
        self.bias: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, layer: SparseLowRankAttention) -> LowRankProjection | None:
        """Of a layer that isn't folded yet; None where there is nothing to win."""
        if not isinstance(layer, PlainAttention) or layer.svd_type == "none" or not layer.foldable:
            return None
        weights: list[Tensor] = []
        decoders: list[Tensor | None] = []
        for letter, weight in ((letter, layer.projection(letter)[0]) for letter in "qkv"):
            pair = None if letter == "v" else layer.auto_encoder(letter)
            if pair is None:
                weights.append(weight.clone())
                decoders.append(None)
                continue
            encoder, decoder = pair
            if encoder.out_features >= layer.num_heads:
                return None
            weights.append((encoder.weight @ weight.reshape(layer.num_heads, -1)).reshape(-1, weight.shape[1]))
            decoders.append(decoder.weight.clone())
        return cls(weights, decoders)

    @property
    def weight(self) -> Tensor:
        """[3*H*d, C], in one product for Q and one for K."""
        parts = []
        for index in range(3):
            part: Tensor = getattr(self, f"weight_{index}")
            decoder: Tensor | None = getattr(self, f"decoder_{index}")
            if decoder is not None:
                part = (decoder @ part.reshape(decoder.shape[1], -1)).reshape(-1, part.shape[1])
            parts.append(part)
        return torch.cat(parts)


class PackedMask(nn.Module):
    """A mask bool [H, R, N] as one bit for each entry; called, what is added to logits: [1, H, R, N]."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.tokens = keep.shape[-1]
        spare = -self.tokens % len(_BITS)
        bits = nn.functional.pad(keep.to(torch.uint8), (0, spare))
        bits = bits.view(*keep.shape[:-1], -1, len(_BITS))
        places = torch.tensor(_BITS, dtype=torch.uint8, device=keep.device)
        self.register_buffer("bits", (bits * places).sum(dim=-1, dtype=torch.uint8)[None])
        self.register_buffer("places", places)
        self.bits: Tensor
        self.places: Tensor

    def forward(self) -> Tensor:
        """0 where kept, -inf where pruned."""
        kept = (self.bits[..., None] & self.places).bool().flatten(-2)[..., : self.tokens]
        return torch.where(kept, 0.0, float("-inf"))


def _mask_and_bias(additive: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What is added to logits, [1, H, R, N] or None, as a mask bool [H, R, N] and a bias; None: there is none."""
    if additive is None:
        return None, None
    keep = additive[0] != float("-inf")
    bias = additive[0].masked_fill(~keep, 0)
    return None if bool(keep.all()) else keep, bias if bool(bias.any()) else None


class OnnxKernel(Kernel):
    """All entries in one operator: onnxruntime's, which is fused on a CPU without a mask, or standard ones.

    Args:
        keep: bool [H, N, N] or None; its rows are those of the queries.
        bias: what is added to the logits beside the mask, [H, N, N], or None.
        portable: see :func:`use_onnx_form`.
    """

    needs_all_rows = False

    def __init__(self, keep: Tensor | None, bias: Tensor | None = None, *, portable: bool) -> None:
        super().__init__()
        self.mask = None if keep is None else PackedMask(keep)
        self.register_buffer("bias", None if bias is None else bias[None])
        self.bias: Tensor | None
        self.portable = portable

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`Kernel`; the mask is the one given before."""
        q, k, v, packed = heads.q, heads.k, heads.v, heads.packed
        added = self.bias if self.mask is None else self.mask() + (0 if self.bias is None else self.bias)
        if self.portable:
            return merge(_attend(q, k, v, added))
        inputs = [merge(q), merge(k), merge(v)] if packed is None else list(packed.chunk(3, dim=-1))
        attended: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            inputs if added is None else [*inputs, None, None, added],
            {"num_heads": q.shape[1]},
            dtype=q.dtype,
            shape=inputs[0].shape,
            version=1,
        )
        return attended


class PlannedOnnxKernel(Kernel):
    """A plan's clusters, each in standard operators: rows are gathered from the packed projection."""

    def __init__(self, plan: AttentionPlan) -> None:
        super().__init__()
        self.mask = PackedMask(plan.keep)
        self.register_buffer("bias", plan.bias)
        self.bias: Tensor | None
        self._clusters: list[tuple[int, bool]] = []
        for head, own in enumerate(plan.clusters):
            for cluster in own:
                queries, keys = (torch.from_numpy(each).int() for each in (cluster.queries, cluster.keys))
                whole = plan.bias is None and bool(plan.keep[head][queries][:, keys].all())
                self.register_buffer(f"queries_{len(self._clusters)}", queries)
                self.register_buffer(f"keys_{len(self._clusters)}", keys)
                self._clusters.append((head, whole))
        self.register_buffer("position", plan.position.int())
        self.position: Tensor

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`Kernel`; the mask is the plan's."""
        packed, num_heads = heads.packed_rows(), heads.q.shape[1]
        batch, tokens, _ = packed.shape
        # Rows of one list: token n of part p and head h is row (3n + p) H + h.
        rows = packed.reshape(batch, 3 * num_heads * tokens, -1)
        added, parts = self.mask()[0], []
        if self.bias is not None:
            added = added + self.bias
        for number, (head, whole) in enumerate(self._clusters):
            queries, keys = getattr(self, f"queries_{number}"), getattr(self, f"keys_{number}")
            q = rows.index_select(1, queries * (3 * num_heads) + head)
            k = rows.index_select(1, keys * (3 * num_heads) + num_heads + head)
            v = rows.index_select(1, keys * (3 * num_heads) + 2 * num_heads + head)
            own = None if whole else added[head].index_select(0, queries).index_select(1, keys)
            parts.append(_attend(q, k, v, own))
        return torch.cat(parts, dim=1).index_select(1, self.position).reshape(batch, tokens, -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + added) v of [..., N, d]."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if added is not None:
        logits = logits + added
    attended: Tensor = logits.softmax(dim=-1) @ v
    return attended
