"""A forward pass in two parts: up to a block, and from there."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def tokens_of(model: VisionTransformer, images: Tensor) -> Tensor:
    """The tokens [B, N, C] that enter the first block, of images [B, C, H, W]."""
    tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    return tokens


def answer_of(model: VisionTransformer, tokens: Tensor, first: int = 0) -> Tensor:
    """Logits [B, classes], or the features of a model without a head, from tokens [B, N, C] entering ``first``."""
    for block in model.blocks[first:]:
        tokens = block(tokens)
    answer: Tensor = model.forward_head(model.norm(tokens))
    return answer
