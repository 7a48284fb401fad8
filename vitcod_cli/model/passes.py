"""A forward pass in parts: up to the first block, a block, and from a block on; of every family of models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer

BlockPass = Callable[[Tensor], Tensor]
"""From the tokens [B, N, C] that enter a block to those that leave it."""


def tokens_of(model: Transformer, images: Tensor) -> Tensor:
    """The tokens [B, N, C] that enter the first block, of images [B, C, H, W]."""
    tokens: Tensor = model.patch_embed(images)
    if isinstance(model, VisionTransformer):
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(tokens)))
    elif isinstance(model, Eva):
        tokens = model.norm_pre(model._pos_embed(tokens)[0])
    else:
        if model.cls_token is not None:
            tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if isinstance(model, Beit):
            tokens = model.pos_drop(tokens if model.pos_embed is None else tokens + model.pos_embed)
    return tokens


def block_passes(model: Transformer) -> list[BlockPass]:
    """The blocks, each with what it takes beside the tokens: a rotary embedding, or a bias that layers share."""
    if isinstance(model, VisionTransformer):
        return list(model.blocks.children())
    beside: dict[str, Any]
    if isinstance(model, Eva):
        rope = rotary_embedding(model)
        if rope is not None and model.rope_mixed:
            return [partial(block, rope=rope[index]) for index, block in enumerate(model.blocks)]
        beside = {"rope": rope}
    elif isinstance(model, Beit):
        beside = {"shared_rel_pos_bias": shared_bias(model)}
    else:
        beside = {"shared_rel_pos": shared_bias(model)}
    return [partial(block, **beside) for block in model.blocks]


def answer_of(model: Transformer, tokens: Tensor, first: int = 0) -> Tensor:
    """Logits [B, classes], or the features of a model without a head, from tokens [B, N, C] entering ``first``."""
    for block in block_passes(model)[first:]:
        tokens = block(tokens)
    answer: Tensor = model.forward_head(model.norm(tokens))
    return answer


def rotary_embedding(model: Transformer) -> Tensor | None:
    """Sine and cosine for each patch, [patches, 2*d]; by layer and head, [L, H, patches, 2*d], where they differ.

    In training mode a model may draw them anew at each call.
    """
    if not isinstance(model, Eva) or model.rope is None:
        return None
    whole = model.dynamic_img_size or not hasattr(model.rope, "feat_shape")  # it doesn't know the size by itself
    rope: Any = model.rope
    embedding: Tensor = rope.get_embed(**({"shape": model.patch_embed.grid_size} if whole else {}))
    return embedding


def position_biases(model: Transformer) -> list[Tensor | None]:
    """What is added to the logits of each attention layer beside the mask, [H, N, N]."""
    shared = shared_bias(model)
    layers = [module for module in model.modules() if isinstance(module, SparseLowRankAttention)]
    return [layer.position_bias(shared) for layer in layers]


def shared_bias(model: Transformer) -> Tensor | None:
    """The relative position bias that all layers of ``model`` share, as its blocks take it."""
    if isinstance(model, Beit):
        own: Any = model.rel_pos_bias
        return None if own is None else own()
    shared: Any = getattr(model, "shared_rel_pos", None)
    bias: Tensor | None = None if shared is None else shared.get_bias()
    return bias
