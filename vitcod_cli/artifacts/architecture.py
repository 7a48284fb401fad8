"""The architecture of a ViT checkpoint, read off its tensors. Nothing is imported from torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vitcod_cli.artifacts.model_config import SvdType

_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base"}


def svd_type_of(state_dict: Mapping[str, Any]) -> SvdType:
    """Which projections have an auto-encoder, from the parameter names."""
    letters = "".join(x for x in "qk" if any(f".attn.encoder_{x}." in name for name in state_dict))
    types: dict[str, SvdType] = {"qk": "mix_head_fc_qk", "q": "mix_head_fc_q", "k": "mix_head_fc_k", "": "none"}
    return types[letters]


def class_count_of(state_dict: Mapping[str, Any]) -> int:
    """Rows of the classifier; 0 without one."""
    return int(state_dict["head.weight"].shape[0]) if "head.weight" in state_dict else 0


def depth_of(state_dict: Mapping[str, Any]) -> int:
    """Number of blocks."""
    numbers = [int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def img_size_of(state_dict: Mapping[str, Any]) -> tuple[int, int] | None:
    """Image size (height, width) of a square model from its position embeddings, or None if they don't say."""
    if "pos_embed" not in state_dict or "patch_embed.proj.weight" not in state_dict:
        return None
    tokens, patch = state_dict["pos_embed"].shape[1], state_dict["patch_embed.proj.weight"].shape[-1]
    prefix = sum(
        state_dict[name].shape[1] for name in ("cls_token", "dist_token", "reg_token") if name in state_dict
    )
    for patches in (tokens - prefix, tokens):  # position embeddings may leave the prefix tokens out
        side = math.isqrt(max(patches, 0))
        if side and side * side == patches:
            return side * patch, side * patch
    return None


def architecture_in_words(state_dict: Mapping[str, Any]) -> str:
    """Such as "12 blocks of width 192 and patches of 16 pixels, as deit_tiny_patch16_224 has"."""
    weight = state_dict.get("patch_embed.proj.weight")
    depth = depth_of(state_dict)
    if weight is None or weight.ndim != 4 or not depth:
        return "no Vision Transformer in timm's names"
    width, patch = weight.shape[0], weight.shape[-1]
    text = f"{depth} blocks of width {width} and patches of {patch} pixels"
    name, size = _SIZES.get((width, depth)), img_size_of(state_dict)
    if name is None or patch != 16 or size not in ((224, 224), (384, 384)):
        return text
    distilled = "distilled_" if "dist_token" in state_dict else ""
    return f"{text}, as deit_{name}_{distilled}patch16_{size[0]} has"
