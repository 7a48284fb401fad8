"""A head auto-encoder before the product of Q and K, and a fixed sparse mask in it, for timm's layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
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
from vitcod_cli.model.kernels.base import Heads, Kernel
from vitcod_cli.model.kernels.choice import inference_kernel
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.settings import AttentionKernel

FOLDED_WIDTH = {torch.float32: 256, torch.bfloat16: 512, torch.float16: 512}
"""Widest layer whose reconstruction loss comes from folded weights on a CPU. The products that this takes grow
with the square of the width, the passes over Q and K that it saves do not; a GPU is short of time for passes."""

Projection = tuple[Tensor, Tensor | None]
"""Weight [heads*d, C] and bias [heads*d] or None."""


class SparseLowRankAttention(nn.Module):
    """Multi-head self-attention whose Q and K may be low-rank over heads and whose pattern may be fixed.

    What the attention layers of all families have in common; :mod:`vitcod_cli.model.families` has one subclass
    for each attention layer of timm's. Without auto-encoder and mask it computes what timm's layer computes, and
    it has the same parameters by the same names. The auto-encoders' are the published ones: ``encoder_q``,
    ``decoder_q``, ``encoder_k``, ``decoder_k``.

    An auto-encoder stands before a rotary embedding: its bias does not rotate with the channels.

    Attributes:
        num_heads: of Q; K and V may have fewer, ``num_kv_heads``, each of which is for several of Q's.
        head_dim: d, channels of a head. attn_dim: H*d, the width of Q.
        timm_biases_keys: whether timm's layer may have a bias on K.
        svd_type: which projections have an auto-encoder.
        keep: bool [H, N, N] or None; True = this query may look at this key. Part of the state
            dict when set, so that a sparse model is one file.
        kernel: how the masked attention is computed (:mod:`vitcod_cli.model.kernels`).
        record_reconstruction: when True, each forward leaves ``reconstruction_loss`` behind; see
            :func:`~vitcod_cli.model.layers.recording_reconstruction`.
    """

    timm_biases_keys = True
    num_heads: int
    head_dim: int
    attn_dim: int
    num_kv_heads: int
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    attn_drop: nn.Dropout
    proj: nn.Linear
    proj_drop: nn.Dropout
    qkv: Any  # a linear layer; None where timm has three
    keep: Tensor | None

    def begin(self) -> None:
        """What a layer of timm's has to get to become one of ours: what only some families have, and a state."""
        self.attn_dim = self.proj.in_features
        self.head_dim = self.attn_dim // self.num_heads
        self.num_kv_heads = getattr(self, "num_kv_heads", self.num_heads)
        for name in ("q_norm", "k_norm", "norm"):
            if not hasattr(self, name):
                setattr(self, name, nn.Identity())
        self.svd_type: SvdType = "none"
        self.register_buffer("keep", None)
        self.kernel: Kernel = FusedKernel()
        self.record_reconstruction = False
        self.reconstruction_loss: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.proj.weight.device

    # -- projections --------------------------------------------------------------------------

    def heads_of(self, letter: str) -> int:
        """How many heads ``"q"``, ``"k"`` or ``"v"`` has."""
        return self.num_heads if letter == "q" else self.num_kv_heads

    def projection(self, letter: str) -> Projection:
        """Weight and bias of ``"q"``, ``"k"`` or ``"v"``: parts of the parameters."""
        raise NotImplementedError

    def packed_projection(self) -> Projection | None:
        """Weight [3*H*d, C] and bias of Q, K and V in one product; None where timm has three."""
        raise NotImplementedError

    def set_projections(self, projections: dict[str, Projection]) -> None:
        """Put others in place of Q's, K's and V's; of the same shape, with a bias where there was none perhaps."""
        raise NotImplementedError

    def position_bias(self, shared: Tensor | None) -> Tensor | None:
        """What is added to the logits beside the mask, [H, N, N]; ``shared``: what the model gives all layers."""
        return None

    # -- auto-encoder -------------------------------------------------------------------------

    def add_auto_encoder(self, svd_type: SvdType) -> None:
        """Give the projections of ``svd_type`` an auto-encoder with the published initialisation."""
        self.svd_type = svd_type
        hidden, like = compressed_heads(self.num_heads), self.proj.weight
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
        """Whether the auto-encoder may be folded into the projections: not through a norm on Q and K."""
        return isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)

    @property
    def folds_as_timm_has_it(self) -> bool:
        """Whether timm's layer has a place for what :meth:`fold` makes, a bias on K included."""
        bias = None if self.timm_biases_keys else self.folded("k")[1]
        return bias is None or not bool(bias.any())

    def folded(self, letter: str) -> Projection:
        """Weight and bias that yield ``"q"``, ``"k"`` or ``"v"`` as it comes from its auto-encoder."""
        weight, bias = self.projection(letter)
        pair = self.auto_encoder(letter)
        if pair is None:
            return weight, bias
        folded, shift = fold_rows(weight, bias, *head_map(*pair))
        return folded.to(weight.dtype), shift.to(weight.dtype)

    def set_keep(self, keep: Tensor | None) -> None:
        """Fix the pattern: bool [H, N, N] on any device, True = this query may look at this key; None = all."""
        self.keep = None if keep is None else keep.to(self.device, torch.bool).contiguous()
        self.kernel = FusedKernel()

    @torch.no_grad()
    def prepare_inference(
        self,
        grid: tuple[int, int],
        dtype: torch.dtype,
        *,
        bias: Tensor | None = None,
        plan: bool = True,
        kernel: AttentionKernel = "auto",
    ) -> None:
        """Do once what needs no image: fold the auto-encoder, and take a kernel that has prepared the mask.

        Args:
            grid: patches along height and width.
            dtype: what attention will be computed in.
            bias: what is added to the logits beside the mask, [H, N, N].
            plan: whether all rows will be computed, so that a plan may pay.
            kernel: see :func:`~vitcod_cli.model.layers.prepare_inference`.
        """
        self.fold()
        chosen = inference_kernel(self.keep, grid, dtype, bias=bias, asked=kernel, all_rows=plan)
        self.kernel = chosen.train(self.training)

    @torch.no_grad()
    def fold(self) -> None:
        """Put the auto-encoder into the weights of Q and K for good, where it can be: inference then costs
        what the dense layer costs. Nothing changes for a layer with a norm on Q and K."""
        if self.svd_type == "none" or not self.foldable:
            return
        folded = {letter: self.folded(letter) for letter in "qkv"}
        for letter in projections(self.svd_type):
            delattr(self, f"encoder_{letter}")
            delattr(self, f"decoder_{letter}")
        self.svd_type = "none"
        self.set_projections(folded)

    def _folded_reconstruction(self, x: Tensor) -> Tensor | None:
        """The reconstruction loss of tokens ``x`` [B, N, C], from weights alone; None without an auto-encoder."""
        weights, biases = [], []
        for letter in projections(self.svd_type):
            pair = self.auto_encoder(letter)
            assert pair is not None
            m, b = head_map(*pair)
            weight, bias = self.projection(letter)
            identity = torch.eye(len(m), dtype=m.dtype, device=m.device)
            weight, shift = fold_rows(weight, bias, m - identity, b)
            weights.append(weight)
            biases.append(shift)
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

    def attend(
        self, x: Tensor, *, rope: Tensor | None = None, bias: Tensor | None = None, rows: int | None = None
    ) -> Tensor:
        """Attention over tokens ``x`` [B, N, C]; returns [B, N, C].

        Args:
            rope: sine and cosine of the rotary embedding, as timm has them: [patches, 2*d], or for each head.
            bias: what is added to the logits, [H, N, N].
            rows: compute the first so many rows alone, [B, rows, C].
        """
        heads = self.project(x, rows, rope, bias)
        attended = self.kernel(heads, self.keep, self.attn_drop.p if self.training else 0.0)
        return self.output(x if rows is None else x[:, :rows], attended)

    def project(
        self, x: Tensor, rows: int | None = None, rope: Tensor | None = None, bias: Tensor | None = None
    ) -> Heads:
        """Q, K (reconstructed, then rotated) and V of tokens ``x`` [B, N, C]; arguments as for :meth:`attend`."""
        self.reconstruction_loss = None
        device, tokens = x.device.type, x
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        fold = self._folds(x, dtype)
        if fold and self.record_reconstruction:
            x = x.to(dtype)  # once for both
            self.reconstruction_loss = self._folded_reconstruction(x)
        whole = rows is None or (self.record_reconstruction and not fold)  # the loss is over all of Q
        packed = self._packed(x, fold=fold) if whole else None
        if packed is not None:
            q, k, v = self._heads(packed, 3, self.num_heads)
        else:
            q, k, v = (self._projected(x if whole or part != "q" else x[:, :rows], part, fold) for part in "qkv")
        if not fold:
            q, k = self._reconstruct(self.q_norm(q), "q"), self._reconstruct(self.k_norm(k), "k")
            q = q if rows is None else q[:, :, :rows]
        if rope is not None:
            assert rows is None, "no head of a model with a rotary embedding reads some rows alone, so far"
            q, k = self._rotated(q, rope).type_as(v), self._rotated(k, rope).type_as(v)
        if self.num_kv_heads < self.num_heads:
            k, v = (part.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for part in (k, v))
        return Heads(tokens, q, k, v, packed if fold and rope is None else None, bias)

    def _packed(self, x: Tensor, *, fold: bool) -> Tensor | None:
        """Q, K and V of ``x`` [B, N, C] by one product, [B, N, 3*H*d]; None where timm has three."""
        projection = self.packed_projection()
        if projection is None:
            return None
        if not fold or self.svd_type == "none":
            return F.linear(x, *projection)
        parts = [self.folded(letter) for letter in "qkv"]
        biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
        return F.linear(x, torch.cat([weight for weight, _ in parts]), torch.cat(biases))

    def _projected(self, x: Tensor, letter: str, fold: bool) -> Tensor:
        """One of Q, K and V of ``x`` [B, N, C]: [B, heads, N, d]."""
        projected = F.linear(x, *(self.folded(letter) if fold else self.projection(letter)))
        return self._heads(projected, 1, self.heads_of(letter))[0]

    def _heads(self, projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        """Of projected tokens [B, N, parts*heads*d] the parts: each [B, heads, N, d]."""
        split = projected.reshape(*projected.shape[:2], parts, heads, self.head_dim)
        return tuple(split.permute(2, 0, 3, 1, 4).unbind(0))

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        """Q or K ``x`` [B, heads, N, d] with its patches rotated by their positions; prefix tokens have none."""
        prefix = x.shape[-2] - rope.shape[-2]
        half = getattr(self, "rotate_half", False)
        return torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)], dim=2)

    def output(self, x: Tensor, merged: Tensor) -> Tensor:
        """From attended values [B, N, H*d] to the layer's output: norm, gate, project."""
        merged = self.norm(merged)
        gate = getattr(self, "gate", None)
        if gate is not None:
            merged = merged * gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(merged))
        return projected
