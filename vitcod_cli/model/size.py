"""Sizes that can't be: images that patches don't divide, models larger than this machine's memory."""

from __future__ import annotations

import os

from timm.layers.patch_embed import PatchEmbed

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.families import Transformer, num_tokens

_BYTES = 4  # float32


def check_divides(model: Transformer, config: ModelConfig, own_size: tuple[int, int]) -> None:
    """Refuse an image size that patches don't divide: timm would cut the rest of every image off.

    Args:
        own_size: that timm made the model for. A few of its models (SigLIP's, 384 pixels in patches of 14) crop
            by intention.

    Raises:
        VitcodError: naming the two sizes around it that can be.
    """
    embed = model.patch_embed
    if not isinstance(embed, PatchEmbed) or getattr(embed, "dynamic_img_pad", False):
        return
    if config.img_size == own_size and "patch_size" not in config.model_kwargs:
        return
    for side, patch in zip(config.img_size, embed.patch_size, strict=True):
        if side % patch:
            below, above = side // patch * patch, (side // patch + 1) * patch
            raise VitcodError(
                f"--img-size {side} can't be divided into patches of {patch} pixels, as --model {config.model} "
                f"has; take {f'{below} or ' if below else ''}{above}."
            )


def check_fits_memory(model: Transformer, config: ModelConfig) -> None:
    """Refuse a model whose weights, or the mask of one head, take more than half of this machine's memory.

    Half, because loading needs the file's weights beside the model's.

    Args:
        model: built on the meta device: it has shapes, and no weights.

    Raises:
        VitcodError: saying what is too large.
    """
    memory = memory_bytes()
    weights = _BYTES * sum(parameter.numel() for parameter in model.parameters())
    tokens = num_tokens(model)
    for what, size in (("the weights", weights), (f"a mask of {tokens} tokens", tokens * tokens)):
        if size > memory / 2:
            height, width = config.img_size
            raise VitcodError(
                f"--model {config.model} with {config.num_classes} classes, images of {height}x{width} pixels and "
                f"these --model-kwargs is too large for this machine: {what} would take {size / 1e9:.3g} GB, and "
                f"half of its memory is {memory / 2e9:.3g} GB; take smaller numbers."
            )


def memory_bytes() -> int:
    """This machine's physical memory; where it doesn't say, what no machine has less of than it takes to load."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 64 << 30
