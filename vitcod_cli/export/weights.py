"""Weights for programs without vitcod: folded for plain timm, or as arrays for numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.statistics import mask_arrays
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attentions, fold_auto_encoders, has_mask

_NUMPYS = (torch.float16, torch.float32, torch.float64)
"""Floating-point numbers that numpy has, too."""


def widened(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that :func:`named_arrays` gives as float32: numpy has no bfloat16, nor smaller ones."""
    return [name for name, value in tensors.items() if value.is_floating_point() and value.dtype not in _NUMPYS]


def named_arrays(tensors: Mapping[str, Tensor], keep: Tensor | None) -> dict[str, NDArray[Any]]:
    """Every weight by its name; where there is a mask, it and its statistics as in a mask's own ``.npz``.

    Args:
        tensors: a state dict; the masks of its blocks are left out.
        keep: bool [L, H, N, N], all of them.

    Returns:
        The same numbers bit for bit, but those that numpy can't hold (:func:`widened`) as equal float32.
    """
    wide = set(widened(tensors))
    arrays: dict[str, NDArray[Any]] = {
        name: (value.float() if name in wide else value).numpy()
        for name, value in tensors.items()
        if not name.endswith(".keep")
    }
    return arrays if keep is None else {**arrays, **mask_arrays(keep.numpy())}


def fold_for_timm(model: Transformer) -> ModelConfig:
    """Fold ``model`` in place, and say which plain model it has become.

    Raises:
        VitcodError: if it has a mask, or auto-encoders behind a norm on Q and K: timm has no place for them.
    """
    programs = "export to .pt2 or .onnx, which hold all of it"
    if has_mask(model):
        raise VitcodError(f"--output to .safetensors: plain timm has no place for the mask; {programs}.")
    if any(layer.svd_type != "none" and not layer.foldable for layer in attentions(model)):
        raise VitcodError(
            "--output to .safetensors: the auto-encoders lie behind a norm on Q and K and can't be folded into "
            f"qkv, and plain timm has no place for them; {programs}."
        )
    if not all(layer.folds_as_timm_has_it for layer in attentions(model)):
        raise VitcodError(
            "--output to .safetensors: folded auto-encoders leave a bias on K, and plain timm has no place for it "
            f"in this model; {programs}."
        )
    config = model_config(model)
    biases = [layer.projection("q")[1] is not None for layer in attentions(model)]
    fold_auto_encoders(model)
    # An auto-encoder has a bias, even where qkv had none.
    renewed = biases != [layer.projection("q")[1] is not None for layer in attentions(model)]
    kwargs = {**config.model_kwargs, "qkv_bias": True} if renewed else config.model_kwargs
    return config.changed(svd_type="none", model_kwargs=kwargs)
