"""Which model to build, from the user's settings and the checkpoint's."""

from __future__ import annotations

from typing import Any

import timm

from vitcod_cli.artifacts.architecture import architecture_in_words, class_count_of, svd_type_of
from vitcod_cli.artifacts.checkpoint import Checkpoint
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import check_known, default_img_size, is_known_model
from vitcod_cli.model.settings import ModelSettings


def resolve_config(
    settings: ModelSettings,
    checkpoint: Checkpoint | None,
    flag: str,
    like: ModelConfig | None = None,
) -> ModelConfig:
    """The config to build: the user's settings, then the checkpoint's, then timm's.

    Args:
        settings: the user's; they go first.
        checkpoint: what was read, or None for random weights.
        flag: the option that the checkpoint came from, for messages.
        like: taken for the checkpoint's model when the checkpoint does not say which it holds.

    Raises:
        VitcodError: if nobody names the model, or two options contradict each other.
    """
    config = None if checkpoint is None else checkpoint.config
    own = like if config is None else config
    name = settings.model or (own.model if own else None)
    if name is None or (settings.model is None and not is_known_model(name)):
        raise VitcodError(_no_name(checkpoint, name, flag))
    check_known(name)
    kwargs = settings.kwargs()
    classes = _one("--num-classes", settings.num_classes, kwargs.pop("num_classes", None))
    size = _one("--img-size", settings.img_size, kwargs.pop("img_size", None))
    # A name that timm doesn't know ("custom") still goes with the shape that its checkpoint has.
    if own is not None and (name == own.model or not is_known_model(own.model)):
        kwargs = {**own.model_kwargs, **kwargs}
        size = own.img_size if size is None else size
    if classes is None and checkpoint is not None:
        classes = config.num_classes if config else class_count_of(checkpoint.state_dict)
    if classes is None:
        classes = _default_classes(name)
    return ModelConfig(
        model=name,
        num_classes=classes,
        img_size=default_img_size(name, kwargs) if size is None else _pair(size),
        svd_type="none" if checkpoint is None else svd_type_of(checkpoint.state_dict),
        model_kwargs=kwargs,
    )


def _no_name(checkpoint: Checkpoint | None, name: str | None, flag: str) -> str:
    if checkpoint is None:
        return "--model is needed: name a timm model, such as deit_tiny_patch16_224, or give a checkpoint."
    says = (
        "doesn't say which model it holds"
        if name is None
        else f"calls its model {name[:100]!r}, which timm doesn't know"
    )
    architecture = architecture_in_words(checkpoint.state_dict)
    return f"{flag} {checkpoint.source} {says} ({architecture}); name the model with --model."


def _one(flag: str, value: Any, in_kwargs: Any) -> Any:
    """The value of an option that may also be among --model-kwargs, as in timm."""
    if value is not None and in_kwargs is not None and value != in_kwargs:
        raise VitcodError(f"{flag} {value} and --model-kwargs say different things ({in_kwargs}); give it once.")
    return in_kwargs if value is None else value


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)


def _default_classes(name: str) -> int:
    cfg = timm.get_pretrained_cfg(name)
    return int(cfg.num_classes) if cfg is not None else 1000
