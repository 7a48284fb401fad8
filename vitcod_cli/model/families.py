"""timm's families of plain Vision Transformers, and their attention layers as ours.

A family is one class of models with one or two classes of attention layers. What differs between them stands here
and in :mod:`vitcod_cli.model.passes`: where the weights of Q, K and V are, and what comes beside the tokens (a
rotary embedding, a relative position bias). All else is refused by name (:mod:`vitcod_cli.model.refusals`).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.models import beit, eva, vision_transformer
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import RelPosAttention, VisionTransformerRelPos
from torch import Tensor, nn

from vitcod_cli.model.attention import Projection, SparseLowRankAttention

Transformer = VisionTransformer | Eva | Beit | VisionTransformerRelPos
"""A model that can be treated."""


def num_tokens(model: Transformer) -> int:
    """N: class, register and distillation tokens, and patches."""
    embed: Any = model.patch_embed
    return int(embed.num_patches) + model.num_prefix_tokens


def grid_size(model: Transformer) -> tuple[int, int]:
    """Patches along height and width."""
    embed: Any = model.patch_embed
    height, width = embed.grid_size
    return int(height), int(width)


def image_size(model: Transformer) -> tuple[int, int]:
    """Pixels along height and width."""
    embed: Any = model.patch_embed
    height, width = embed.img_size
    return int(height), int(width)


def filter_checkpoint(state_dict: dict[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """``state_dict`` with names and sizes as ``model`` has them, through timm's own filter for its family."""
    if isinstance(model, VisionTransformer):
        return vision_transformer.checkpoint_filter_fn(state_dict, model, adapt_layer_scale=True)
    if isinstance(model, Eva):
        return eva.checkpoint_filter_fn(state_dict, model)
    # timm has none for relative positions without BEiT's class token.
    return beit.checkpoint_filter_fn(state_dict, model) if isinstance(model, Beit) else state_dict


class _PackedQkv(SparseLowRankAttention):
    """One linear layer ``qkv``, whose bias is its own."""

    def projection(self, letter: str) -> Projection:
        """See the base class."""
        assert self.qkv is not None
        rows = slice("qkv".index(letter) * self.attn_dim, ("qkv".index(letter) + 1) * self.attn_dim)
        return self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows]

    def packed_projection(self) -> Projection | None:
        """See the base class."""
        assert self.qkv is not None
        return self.qkv.weight, self.qkv.bias

    def set_projections(self, projections: dict[str, Projection]) -> None:
        """See the base class."""
        assert self.qkv is not None
        self.qkv.weight = nn.Parameter(torch.cat([weight for weight, _ in projections.values()]))
        self.qkv.bias = nn.Parameter(_joined_bias(projections))


class _BiasesApart(SparseLowRankAttention):
    """One linear layer ``qkv`` without a bias, and ``q_bias`` and ``v_bias`` beside it: keys have none."""

    timm_biases_keys = False
    q_bias: Any  # parameters, and a constant buffer for K; None without biases
    k_bias: Any
    v_bias: Any

    def projection(self, letter: str) -> Projection:
        """See the base class; the bias of K is a constant 0, which counts as none."""
        assert self.qkv is not None
        rows = slice("qkv".index(letter) * self.attn_dim, ("qkv".index(letter) + 1) * self.attn_dim)
        bias: Tensor | None = None if letter == "k" and not self._has_key_bias else getattr(self, f"{letter}_bias")
        return self.qkv.weight[rows], bias

    @property
    def _has_key_bias(self) -> bool:
        return isinstance(self.k_bias, nn.Parameter)

    def packed_projection(self) -> Projection | None:
        """See the base class."""
        assert self.qkv is not None
        if self.q_bias is None or self.k_bias is None or self.v_bias is None:
            return self.qkv.weight, None
        return self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias))

    def set_projections(self, projections: dict[str, Projection]) -> None:
        """See the base class."""
        assert self.qkv is not None
        self.qkv.weight = nn.Parameter(torch.cat([weight for weight, _ in projections.values()]))
        for letter, (weight, bias) in projections.items():
            if hasattr(self, f"{letter}_bias"):
                delattr(self, f"{letter}_bias")
            value = weight.new_zeros(len(weight)) if bias is None else bias.clone()
            if letter == "k" and not value.any():
                self.register_buffer("k_bias", value, persistent=False)  # as timm has it
            else:
                setattr(self, f"{letter}_bias", nn.Parameter(value))


class _ThreeProjections(SparseLowRankAttention):
    """Linear layers ``q_proj``, ``k_proj`` and ``v_proj``."""

    q_proj: Any  # linear layers
    k_proj: Any
    v_proj: Any

    def projection(self, letter: str) -> Projection:
        """See the base class."""
        linear: nn.Linear = getattr(self, f"{letter}_proj")
        return linear.weight, linear.bias

    def packed_projection(self) -> Projection | None:
        """See the base class."""
        return None

    def set_projections(self, projections: dict[str, Projection]) -> None:
        """See the base class."""
        for letter, (weight, bias) in projections.items():
            linear: nn.Linear = getattr(self, f"{letter}_proj")
            linear.weight = nn.Parameter(weight.clone())
            value = weight.new_zeros(len(weight)) if bias is None else bias.clone()
            left_out = letter == "k" and not self.timm_biases_keys and not value.any()
            linear.register_parameter("bias", None if left_out else nn.Parameter(value))


def _joined_bias(projections: dict[str, Projection]) -> Tensor:
    return torch.cat(
        [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in projections.values()]
    )


class PlainAttention(_PackedQkv, Attention):
    """timm's ``Attention``, of ViT, DeiT and all that are built like them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin()

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rows: int | None = None
    ) -> Tensor:
        """Attention over tokens ``x`` [B, N, C]; returns [B, N, C]. The mask is the fixed one.

        Args:
            rows: compute the first so many rows alone, [B, rows, C].

        Raises:
            ValueError: if timm passes a mask of its own: two patterns at once mean nothing here.
        """
        _check_no_other(self, attn_mask, is_causal)
        return self.attend(x, rows=rows)


class _Rotary(SparseLowRankAttention):
    """Takes a rotary embedding, if there is one."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attention over tokens ``x`` [B, N, C]; returns [B, N, C]. The mask is the fixed one.

        Args:
            rope: sine and cosine for each patch, [patches, 2*d], or for each head.

        Raises:
            ValueError: if timm passes a mask of its own.
        """
        _check_no_other(self, attn_mask, is_causal)
        return self.attend(x, rope=rope)


class EvaFusedAttention(_Rotary, _BiasesApart, EvaAttention):
    """timm's ``EvaAttention`` with one projection: DINOv3, EVA-02 of tiny and small size."""


class EvaSplitAttention(_Rotary, _ThreeProjections, EvaAttention):
    """timm's ``EvaAttention`` with three projections: EVA-02 of base and large size."""

    timm_biases_keys = False


class RopeFusedAttention(_Rotary, _PackedQkv, AttentionRope):
    """timm's ``AttentionRope`` with one projection: Perception Encoder, ViT with RoPE."""


class RopeSplitAttention(_Rotary, _ThreeProjections, AttentionRope):
    """timm's ``AttentionRope`` with three projections, of K and V perhaps with fewer heads: Sapiens2."""


class BeitSparseAttention(_BiasesApart, BeitAttention):
    """BEiT's attention: a relative position bias of the layer, one that all layers share, or none."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attention over tokens ``x`` [B, N, C]; returns [B, N, C].

        Args:
            shared_rel_pos_bias: [H, N, N], of the model.
        """
        return self.attend(x, bias=self.position_bias(shared_rel_pos_bias))

    def position_bias(self, shared: Tensor | None) -> Tensor | None:
        """What is added to the logits, [H, N, N]; ``shared``: that of the model, if it has one."""
        table: Tensor | None = self.relative_position_bias_table
        if table is None:
            return shared
        own: Tensor = self._get_rel_pos_bias()[0]
        return own if shared is None else own + shared


class RelPosSparseAttention(_PackedQkv, RelPosAttention):
    """Attention of timm's ViTs with a relative position bias, of the layer or of all layers."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Attention over tokens ``x`` [B, N, C]; returns [B, N, C].

        Args:
            shared_rel_pos: [1, H, N, N], of the model.
        """
        return self.attend(x, bias=self.position_bias(shared_rel_pos))

    def position_bias(self, shared: Tensor | None) -> Tensor | None:
        """What is added to the logits, [H, N, N]; ``shared``: that of the model, [1, H, N, N], if it has one."""
        rel_pos: Any = self.rel_pos
        bias: Tensor | None = shared if rel_pos is None else rel_pos.get_bias()
        return None if bias is None else bias[0]


def _check_no_other(layer: nn.Module, attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError(f"{type(layer).__name__} has its own fixed mask and takes no other")


def treatment(layer: nn.Module) -> type[SparseLowRankAttention] | None:
    """The class of ours that stands for a layer of timm's; None for what is no attention that can be treated."""
    kind, fused = type(layer), getattr(layer, "qkv", None) is not None
    if kind is EvaAttention:
        return EvaFusedAttention if fused else EvaSplitAttention
    if kind is AttentionRope:
        return RopeFusedAttention if fused else RopeSplitAttention
    own: dict[type[nn.Module], type[SparseLowRankAttention]] = {
        Attention: PlainAttention,
        BeitAttention: BeitSparseAttention,
        RelPosAttention: RelPosSparseAttention,
    }
    return own.get(kind)


def treat(model: Transformer) -> None:
    """Make every attention layer of ``model``, as timm built it, one of ours; weights and their names stay."""
    for layer in list(model.modules()):
        own = treatment(layer)
        if own is not None:
            layer.__class__ = own  # most models choose the class of their attention, and no argument changes that
            assert isinstance(layer, SparseLowRankAttention)
            layer.begin()
