"""A timm model that somebody has in memory, with our attention layers in place of timm's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.model.families import Transformer, image_size


def adopt(model: nn.Module, model_kwargs: Mapping[str, Any] | None = None) -> Transformer:
    """A copy of ``model`` that has our attention layers and the same weights; ``model`` stays as it is.

    Args:
        model: one of ours, or made by ``timm.create_model``.
        model_kwargs: what ``timm.create_model`` was given beside the name, ``num_classes`` and ``img_size``.

    Raises:
        VitcodError: if its architecture can't be treated, or ``model_kwargs`` don't make a model of its shape.
    """
    if isinstance(getattr(model, "vitcod_config", None), ModelConfig):
        own: Transformer = copy.deepcopy(model)  # type: ignore[assignment]
        return own
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not isinstance(model, Transformer) or not name:
        raise VitcodError(
            f"A {type(model).__name__} can't be treated; take a Vision Transformer of timm.create_model, such as "
            "deit_tiny_patch16_224."
        )
    config = ModelConfig(
        model=name,
        num_classes=model.num_classes,
        img_size=image_size(model),
        model_kwargs=dict(model_kwargs or {}),
    )
    with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
        ours = build_model(config)
    try:
        ours.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise VitcodError(
            f"The model is not what timm makes of {name} with model_kwargs={config.model_kwargs}; give as "
            "model_kwargs what timm.create_model was given."
        ) from error
    return ours.to(next(model.parameters()).device)
