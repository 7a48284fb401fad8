"""Build a timm model with our attention."""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.attention import SparseLowRankAttention


def build_model(config: ModelConfig, *, drop_path: float = 0.0) -> VisionTransformer:
    """A timm Vision Transformer whose attention layers are ours, with random weights.

    The model carries its ``config`` as ``model.vitcod_config``.

    Args:
        config: name, class count, image size, auto-encoder and further timm arguments.
        drop_path: stochastic depth rate, for training.

    Raises:
        VitcodError: for an unknown name, arguments that timm refuses, or an architecture that is
            not made of timm's plain ``Attention``.
    """
    check_architecture(config)
    model = _create(config, attn_layer=SparseLowRankAttention, drop_path_rate=drop_path)
    for module in model.modules():
        if isinstance(module, SparseLowRankAttention):
            module.add_auto_encoder(config.svd_type)
    model.vitcod_config = config  # type: ignore[assignment]
    return model


def plain_model(config: ModelConfig, *, drop_path: float = 0.0) -> VisionTransformer:
    """timm's own model of that shape, random weights: no auto-encoders, and no mask can be set.

    Raises:
        VitcodError: as :func:`build_model`.
    """
    check_architecture(config)
    model = _create(config, drop_path_rate=drop_path)
    model.vitcod_config = config.changed(svd_type="none")  # type: ignore[assignment]
    return model


def check_architecture(config: ModelConfig) -> None:
    """Raise a VitcodError unless ``config`` names a plain timm ViT that we can treat."""
    if not timm.is_model(config.model):
        raise VitcodError(_unknown_model(config.model))
    with torch.device("meta"):
        model = _create(config)
    plain = [module for module in model.modules() if type(module) is Attention]
    if isinstance(model, VisionTransformer) and plain:
        other = [name for name, module in model.blocks.named_children() if not _has_attention(module)]
        if not other and model.patch_embed.num_patches > 0:
            return
        if not other:
            size = "x".join(map(str, config.img_size))
            raise VitcodError(
                f"--img-size {size} is smaller than a patch of --model {config.model}; take a larger one."
            )
    raise VitcodError(
        f"--model {config.model} can't be treated: it is a {type(model).__name__} whose blocks are not built "
        "from timm's plain Attention (choose a DeiT or ViT model, such as deit_tiny_patch16_224)."
    )


def _has_attention(block: nn.Module) -> bool:
    return any(type(module) is Attention for module in block.modules())


def _unknown_model(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists the names."
    return f"--model {name} is not a model that timm knows; {hint}"


def _create(config: ModelConfig, **extra: Any) -> VisionTransformer:
    # img_size is passed to ViTs only: other architectures refuse it, and are refused by name anyway.
    kwargs: dict[str, Any] = {**config.model_kwargs, **extra, "num_classes": config.num_classes}
    module = timm.models.model_entrypoint(config.model).__module__
    if module.rsplit(".", 1)[-1] in ("vision_transformer", "deit", "vision_transformer_hybrid"):
        kwargs["img_size"] = config.img_size
    try:
        return cast(VisionTransformer, timm.create_model(config.model, pretrained=False, **kwargs))
    # timm checks few arguments itself: num_heads=0 divides by zero, act_layer=x is a KeyError.
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, OSError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        message = f"timm can't build --model {config.model} with these --model-kwargs: {reason}."
        raise VitcodError(message) from error


def model_config(model: nn.Module) -> ModelConfig:
    """The config that ``model`` was built from."""
    return cast(ModelConfig, model.vitcod_config)


def default_img_size(name: str, model_kwargs: dict[str, Any] | None = None) -> tuple[int, int]:
    """The image size (height, width) that the named timm model is made for."""
    if not timm.is_model(name):
        raise VitcodError(_unknown_model(name))
    size = (model_kwargs or {}).get("img_size")
    if size is None:
        cfg = timm.get_pretrained_cfg(name)
        return cast("tuple[int, int]", tuple(cfg.input_size[-2:])) if cfg is not None else (224, 224)
    return (size, size) if isinstance(size, int) else cast("tuple[int, int]", tuple(size))


def input_channels(model: VisionTransformer) -> int:
    """Channels of the images that ``model`` takes; a hybrid's patches are not made of pixels."""
    stem = next(module for module in model.patch_embed.modules() if isinstance(module, nn.Conv2d))
    return int(stem.in_channels)
