"""The architecture of a ViT checkpoint, read off its tensors. Nothing is imported from torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vitcod_cli.artifacts.model_config import SvdType
from vitcod_cli.errors import VitcodError

_RANKS = {
    "head.weight": (2,),
    "pos_embed": (3,),
    "patch_embed.proj.weight": (2, 4),  # old files have it flat, and timm makes a convolution of it
    **dict.fromkeys(("cls_token", "dist_token", "reg_token"), (3,)),
}
"""How many dimensions the tensors have that tell of the architecture; the usual number last."""

_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base"}


def svd_type_of(state_dict: Mapping[str, Any]) -> SvdType:
    """Which projections have an auto-encoder, from the parameter names."""
    letters = "".join(x for x in "qk" if any(f".attn.encoder_{x}." in name for name in state_dict))
    types: dict[str, SvdType] = {"qk": "mix_head_fc_qk", "q": "mix_head_fc_q", "k": "mix_head_fc_k", "": "none"}
    return types[letters]


def check_ranks(state_dict: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint whose tensors, where they tell of the architecture, have other dimensions than a ViT's.

    Args:
        where: the option and the file, as the beginning of a sentence.

    Raises:
        VitcodError: naming the tensor.
    """
    for name, ranks in _RANKS.items():
        if name in state_dict and len(state_dict[name].shape) not in ranks:
            raise VitcodError(
                f"{where} has {name} of shape {list(state_dict[name].shape)}, and that of a Vision Transformer of "
                f"timm's has {ranks[-1]} dimensions; give a checkpoint of a timm or DeiT model."
            )


def _shape_of(state_dict: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """The shape of a tensor, or None where it isn't there or has not as many dimensions as it should."""
    shape = tuple(state_dict[name].shape) if name in state_dict else ()
    return shape if name in _RANKS and len(shape) == _RANKS[name][-1] else None


def class_count_of(state_dict: Mapping[str, Any]) -> int:
    """Rows of the classifier; 0 without one."""
    shape = _shape_of(state_dict, "head.weight")
    return 0 if shape is None else shape[0]


def depth_of(state_dict: Mapping[str, Any]) -> int:
    """Number of blocks."""
    numbers = [int(match[1]) for name in state_dict if (match := re.match(r"blocks\.(\d{1,9})\.", name))]
    return max(numbers, default=-1) + 1


def img_size_of(state_dict: Mapping[str, Any]) -> tuple[int, int] | None:
    """Image size (height, width) of a square model from its position embeddings, or None if they don't say."""
    embeddings, patches_shape = (
        _shape_of(state_dict, "pos_embed"),
        _shape_of(state_dict, "patch_embed.proj.weight"),
    )
    if embeddings is None or patches_shape is None:
        return None
    tokens, patch = embeddings[1], patches_shape[-1]
    shapes = [_shape_of(state_dict, name) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = sum(shape[1] for shape in shapes if shape is not None)
    for patches in (tokens - prefix, tokens):  # position embeddings may leave the prefix tokens out
        side = math.isqrt(max(patches, 0))
        if side and patch and side * side == patches:
            return side * patch, side * patch
    return None


def architecture_in_words(state_dict: Mapping[str, Any]) -> str:
    """Such as "12 blocks of width 192 and patches of 16 pixels, as deit_tiny_patch16_224 has"."""
    shape = _shape_of(state_dict, "patch_embed.proj.weight")
    depth = depth_of(state_dict)
    if shape is None or not depth:
        return "no Vision Transformer in timm's names"
    width, patch = shape[0], shape[-1]
    text = f"{depth} blocks of width {width} and patches of {patch} pixels"
    name, size = _SIZES.get((width, depth)), img_size_of(state_dict)
    if name is None or patch != 16 or size not in ((224, 224), (384, 384)):
        return text
    distilled = "distilled_" if "dist_token" in state_dict else ""
    return f"{text}, as deit_{name}_{distilled}patch16_{size[0]} has"
