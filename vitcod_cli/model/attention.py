"""timm's attention with a head auto-encoder before the product and a fixed sparse mask in it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from vitcod_cli.artifacts.model_config import SvdType
from vitcod_cli.model.auto_encoder import (
    FoldedReconstruction,
    Reconstruction,
    compressed_heads,
    fold_rows,
    head_map,
    init_published,
    projections,
)
from vitcod_cli.model.kernels.base import Heads, Kernel, additive_mask
from vitcod_cli.model.kernels.fused import PREPARED, FusedKernel
from vitcod_cli.model.kernels.planned import PlannedKernel, plan_attention

FOLDED_WIDTH = {torch.float32: 256, torch.bfloat16: 512, torch.float16: 512}
"""Widest layer whose reconstruction loss comes from folded weights on a CPU. The products that this takes grow
with the square of the width, the passes over Q and K that it saves do not; a GPU is short of time for passes."""


class SparseLowRankAttention(Attention):
    """Multi-head self-attention whose Q and K may be low-rank over heads and whose pattern may be fixed.

    Built by timm through its ``attn_layer`` argument; without auto-encoder and mask it computes
    what timm's ``Attention`` computes. Parameter names are the published ones: ``encoder_q``,
    ``decoder_q``, ``encoder_k``, ``decoder_k``.

    Attributes:
        svd_type: which projections have an auto-encoder.
        keep: bool [H, N, N] or None; True = this query may look at this key. Part of the state
            dict when set, so that a sparse model is one file.
        kernel: how the masked attention is computed (:mod:`vitcod_cli.model.kernels`).
        record_reconstruction: when True, each forward leaves ``reconstruction_loss`` behind; see
            :func:`~vitcod_cli.model.layers.recording_reconstruction`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.svd_type: SvdType = "none"
        self.register_buffer("keep", None)
        self.keep: Tensor | None
        self.kernel: Kernel = FusedKernel()
        self.record_reconstruction = False
        self.reconstruction_loss: Tensor | None = None

    # -- auto-encoder -------------------------------------------------------------------------

    def add_auto_encoder(self, svd_type: SvdType) -> None:
        """Give the projections of ``svd_type`` an auto-encoder with the published initialisation."""
        self.svd_type = svd_type
        hidden, like = compressed_heads(self.num_heads), self.qkv.weight
        for letter in projections(svd_type):
            encoder = nn.Linear(self.num_heads, hidden, device=like.device, dtype=like.dtype)
            decoder = nn.Linear(hidden, self.num_heads, device=like.device, dtype=like.dtype)
            init_published(encoder, decoder)
            setattr(self, f"encoder_{letter}", encoder)
            setattr(self, f"decoder_{letter}", decoder)

    def auto_encoder(self, letter: str) -> tuple[nn.Linear, nn.Linear] | None:
        """The (encoder, decoder) of ``"q"`` or ``"k"``, or None when it has none."""
        encoder, decoder = getattr(self, f"encoder_{letter}", None), getattr(self, f"decoder_{letter}", None)
        return None if encoder is None or decoder is None else (encoder, decoder)

    @property
    def foldable(self) -> bool:
        """Whether the auto-encoder may be folded into qkv: not through a norm on Q and K."""
        return isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)

    def folded_qkv(self) -> tuple[Tensor, Tensor | None]:
        """Weight [3*H*d, C] and bias of one projection that yields reconstructed Q and K, and V."""
        weight, bias = self.qkv.weight, self.qkv.bias
        if self.svd_type == "none":
            return weight, bias
        weights = list(weight.chunk(3))
        biases = list(bias.chunk(3)) if bias is not None else [weight.new_zeros(self.attn_dim)] * 3
        for index, letter in enumerate("qk"):
            pair = self.auto_encoder(letter)
            if pair is not None:
                m, b = head_map(*pair)
                folded, shift = fold_rows(weights[index], biases[index], m, b)
                weights[index], biases[index] = folded.to(weight.dtype), shift.to(weight.dtype)
        return torch.cat(weights), torch.cat(biases)

    def set_keep(self, keep: Tensor | None) -> None:
        """Fix the pattern: bool [H, N, N] on any device, True = this query may look at this key; None = all."""
        self.keep = None if keep is None else keep.to(self.qkv.weight.device, torch.bool).contiguous()
        self.kernel = FusedKernel()

    @torch.no_grad()
    def prepare_inference(self, grid: tuple[int, int], dtype: torch.dtype, *, plan: bool = True) -> None:
        """Do once what needs no image: fold the auto-encoder, and take a kernel that has prepared the mask.

        Args:
            grid: patches along height and width.
            dtype: what attention will be computed in.
            plan: whether all rows will be computed, so that a plan may pay.
        """
        self.fold()
        if self.keep is None:
            return
        additive, planned = None, None
        if self.keep.numel() <= PREPARED:
            additive = additive_mask(self.keep, dtype)[None]
        if plan and self.foldable and self.qkv.weight.device.type == "cpu" and dtype == torch.float32:
            planned = plan_attention(self.keep, grid)
        kernel = FusedKernel(additive) if planned is None else PlannedKernel(planned, additive)
        self.kernel = kernel.train(self.training)

    @torch.no_grad()
    def fold(self) -> None:
        """Put the auto-encoder into the qkv weights for good, where it can be: inference then costs
        what the dense layer costs. Nothing changes for a layer with a norm on Q and K."""
        if self.svd_type == "none" or not self.foldable:
            return
        weight, bias = self.folded_qkv()
        for letter in projections(self.svd_type):
            delattr(self, f"encoder_{letter}")
            delattr(self, f"decoder_{letter}")
        self.svd_type = "none"
        assert bias is not None  # an auto-encoder has one, even where qkv has none
        self.qkv.weight, self.qkv.bias = nn.Parameter(weight), nn.Parameter(bias)

    def _folded_reconstruction(self, x: Tensor) -> Tensor | None:
        """The reconstruction loss of tokens ``x`` [B, N, C], from weights alone; None without an auto-encoder."""
        weights, biases = [], []
        for index, letter in enumerate("qk"):
            pair = self.auto_encoder(letter)
            if pair is not None:
                m, b = head_map(*pair)
                rows = slice(index * self.attn_dim, (index + 1) * self.attn_dim)
                bias = None if self.qkv.bias is None else self.qkv.bias[rows]
                identity = torch.eye(len(m), dtype=m.dtype, device=m.device)
                weight, bias = fold_rows(self.qkv.weight[rows], bias, m - identity, b)
                weights.append(weight)
                biases.append(bias)
        if not weights:
            return None
        with torch.autocast(x.device.type, enabled=False):
            norms: Tensor = FoldedReconstruction.apply(x, torch.stack(weights), torch.stack(biases))
        return norms.sum()

    def _folds(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether this forward of ``x``, computed in ``dtype``, puts the auto-encoder into the qkv weights."""
        if not self.foldable:
            return False
        narrow = x.shape[-1] <= FOLDED_WIDTH.get(dtype, 0)
        return narrow or not self.record_reconstruction or x.device.type != "cpu"

    def _reconstruct(self, x: Tensor, letter: str) -> Tensor:
        """``x`` [B, H, N, d] through its auto-encoder; leaves the loss when it is recorded."""
        pair = self.auto_encoder(letter)
        if pair is None:
            return x
        m, b = head_map(*pair)
        with torch.autocast(x.device.type, enabled=False):
            x_hat: Tensor
            x_hat, error = Reconstruction.apply(x, m, b)
        if self.record_reconstruction:
            recorded = self.reconstruction_loss
            self.reconstruction_loss = error if recorded is None else recorded + error
        return x_hat

    # -- forward ------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rows: int | None = None
    ) -> Tensor:
        """Attention over tokens ``x`` [B, N, C]; returns [B, N, C]. The mask is the fixed one.

        Args:
            rows: compute the first so many rows alone, [B, rows, C].

        Raises:
            ValueError: if timm passes a mask of its own: two patterns at once mean nothing here.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("SparseLowRankAttention has its own fixed mask and takes no other")
        heads = self.project(x, rows)
        attended = self.kernel(heads, self.keep, self.attn_drop.p if self.training else 0.0)
        return self.output(x if rows is None else x[:, :rows], attended)

    def project(self, x: Tensor, rows: int | None = None) -> Heads:
        """Q, K (reconstructed) and V of tokens ``x`` [B, N, C]; Q of the first ``rows`` alone, if given."""
        self.reconstruction_loss = None
        device, tokens = x.device.type, x
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        fold = self._folds(x, dtype)
        if fold and self.record_reconstruction:
            x = x.to(dtype)  # once for both
            self.reconstruction_loss = self._folded_reconstruction(x)
        packed: Tensor | None = None
        if rows is None or (self.record_reconstruction and not fold):  # the loss is over all of Q
            packed = F.linear(x, *self.folded_qkv()) if fold else self.qkv(x)
            q, k, v = self._heads(packed)
        else:
            weight, bias = self.folded_qkv() if fold else (self.qkv.weight, self.qkv.bias)
            rest = slice(self.attn_dim, None)
            bias_q, bias_kv = (None, None) if bias is None else (bias[: self.attn_dim], bias[rest])
            (q,) = self._heads(F.linear(x[:, :rows], weight[: self.attn_dim], bias_q))
            k, v = self._heads(F.linear(x, weight[rest], bias_kv))
        if fold:
            return Heads(tokens, q, k, v, packed)
        q, k = self._reconstruct(self.q_norm(q), "q"), self._reconstruct(self.k_norm(k), "k")
        return Heads(tokens, q if rows is None else q[:, :, :rows], k, v, None)

    def _heads(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Of projected tokens [B, N, P*H*d] the ``P`` parts, some of Q, K and V: each [B, H, N, d]."""
        parts = projected.reshape(*projected.shape[:2], -1, self.num_heads, self.head_dim)
        return tuple(parts.permute(2, 0, 3, 1, 4).unbind(0))

    def output(self, x: Tensor, merged: Tensor) -> Tensor:
        """From attended values [B, N, H*d] to the layer's output: norm, gate, project."""
        merged = self.norm(merged)
        gate = getattr(self, "gate", None)  # timm has it since 1.0.28
        if gate is not None:
            merged = merged * gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(merged))
        return projected
