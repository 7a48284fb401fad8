"""Build a timm model with our attention."""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
from torch import nn

from vitcod_cli.artifacts.files import first_line
from vitcod_cli.artifacts.model_arguments import VIT_MODULES, check_model_kwargs, is_count, is_size
from vitcod_cli.artifacts.model_config import ModelConfig, is_model_name
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer, treat
from vitcod_cli.model.read_rows import leave_out_unread_rows
from vitcod_cli.model.refusals import auto_encoder_refusal, refusal
from vitcod_cli.model.size import check_divides, check_fits_memory


def build_model(config: ModelConfig, *, drop_path: float = 0.0) -> Transformer:
    """A timm Vision Transformer whose attention layers are ours, with random weights.

    The model carries its ``config`` as ``model.vitcod_config``.

    Args:
        config: name, class count, image size, auto-encoder and further timm arguments.
        drop_path: stochastic depth rate, for training.

    Raises:
        VitcodError: for an unknown name, arguments that timm refuses, an architecture that can't be treated, or
            an auto-encoder that it can't have.
    """
    check_architecture(config)
    model = _create(config, drop_path_rate=drop_path)
    treat(model)
    if config.svd_type != "none":
        check_auto_encoder(model, config)
    for module in model.modules():
        if isinstance(module, SparseLowRankAttention):
            module.add_auto_encoder(config.svd_type)
    leave_out_unread_rows(model)
    model.vitcod_config = config  # type: ignore[assignment]
    return model


def plain_model(config: ModelConfig, *, drop_path: float = 0.0) -> Transformer:
    """timm's own model of that shape, random weights: no auto-encoders, and no mask can be set.

    Raises:
        VitcodError: as :func:`build_model`.
    """
    check_architecture(config)
    model = _create(config, drop_path_rate=drop_path)
    model.vitcod_config = config.changed(svd_type="none")  # type: ignore[assignment]
    return model


def is_known_model(name: object) -> bool:
    """Whether ``name`` is an architecture of timm's registry, with a tag that it has or none."""
    if not is_model_name(name) or not timm.is_model(cast(str, name)):
        return False
    try:
        timm.get_pretrained_cfg(cast(str, name))
    except RuntimeError:  # such a tag there is not
        return False
    return True


def check_known(name: str) -> None:
    """Raise a VitcodError, with the names that are near, unless :func:`is_known_model`."""
    if not is_known_model(name):
        raise VitcodError(_unknown_model(name))


def check_architecture(config: ModelConfig) -> None:
    """Raise a VitcodError unless ``config`` names a ViT of timm's that we can treat.

    It is built without memory for its weights, so that one too large for this machine is told before it takes any.
    """
    check_known(config.model)
    check_model_kwargs(config.model_kwargs, f"--model {config.model}")
    if not (is_count(config.num_classes, 0) and is_size(config.img_size)):
        raise VitcodError(
            f"--model {config.model} can't have {config.num_classes} classes and images of "
            f"{_in_words(config.img_size)} pixels; give --num-classes and --img-size."
        )
    with torch.device("meta"):
        model = _create(config)
    reason = refusal(model)
    if reason is not None:
        raise VitcodError(
            f"--model {config.model} can't be treated: it is a {type(model).__name__} ({reason}); choose another "
            "(vitcod models lists those that can), such as deit_tiny_patch16_224."
        )
    if model.patch_embed.num_patches == 0:
        raise VitcodError(
            f"--img-size {_in_words(config.img_size)} is smaller than a patch of --model {config.model}; take "
            "a larger one."
        )
    check_divides(model, config, default_img_size(config.model))
    check_fits_memory(model, config)


def check_auto_encoder(model: Transformer, config: ModelConfig) -> None:
    """Raise a VitcodError if ``model``, one of ours, can have no head auto-encoder."""
    reason = auto_encoder_refusal(model)
    if reason is not None:
        raise VitcodError(
            f"--model {config.model} can have no head auto-encoder: {reason}. Masks it can have: compress it with "
            "--svd-type none, or go on with dump-attn, gen-mask and finetune-sparse from the dense model."
        )


def _in_words(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _unknown_model(name: str) -> str:
    import difflib

    name = name[:100] if name.isprintable() else repr(name[:100])
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists the names."
    return f"--model {name} is not a model that timm knows; {hint}"


def _create(config: ModelConfig, **extra: Any) -> Transformer:
    # img_size is passed to ViTs only: other architectures refuse it, and are refused by name anyway.
    kwargs: dict[str, Any] = {**config.model_kwargs, **extra, "num_classes": config.num_classes}
    module = timm.models.model_entrypoint(config.model).__module__
    if module.rsplit(".", 1)[-1] in VIT_MODULES:
        kwargs["img_size"] = config.img_size
    try:
        return cast(Transformer, timm.create_model(config.model, pretrained=False, **kwargs))
    # timm checks few arguments itself: num_heads=0 divides by zero, act_layer=x is a KeyError.
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, OSError) as error:
        reason = first_line(error)
        message = f"timm can't build --model {config.model} with these --model-kwargs: {reason}."
        raise VitcodError(message) from error


def model_config(model: nn.Module) -> ModelConfig:
    """The config that ``model`` was built from."""
    return cast(ModelConfig, model.vitcod_config)


def default_img_size(name: str, model_kwargs: dict[str, Any] | None = None) -> tuple[int, int]:
    """The image size (height, width) that the named timm model is made for."""
    check_known(name)
    size = (model_kwargs or {}).get("img_size")
    if size is None:
        cfg = timm.get_pretrained_cfg(name)
        return cast("tuple[int, int]", tuple(cfg.input_size[-2:])) if cfg is not None else (224, 224)
    return (size, size) if isinstance(size, int) else cast("tuple[int, int]", tuple(size))


def input_channels(model: Transformer) -> int:
    """Channels of the images that ``model`` takes; a hybrid's patches are not made of pixels."""
    stem = next(module for module in model.patch_embed.modules() if isinstance(module, nn.Conv2d))
    return int(stem.in_channels)
