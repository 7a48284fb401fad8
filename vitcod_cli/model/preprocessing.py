"""How images are brought into the form that a model takes."""

from __future__ import annotations

from typing import Any, cast

from vitcod_cli.data.preprocess import Preprocess, preprocess_for
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.model.build import input_channels, model_config
from vitcod_cli.model.families import Transformer


def preprocess_of(model: Transformer, data: DataSettings | None = None) -> Preprocess:
    """Resize, crop and normalisation of ``model``: its own mean and std, the crop of ``data`` or DeiT's.

    Raises:
        VitcodError: if the model takes neither 1 nor 3 channels.
    """
    size = (input_channels(model), *model_config(model).img_size)
    return preprocess_for(cast("dict[str, Any]", model.pretrained_cfg), size, data or DataSettings())
