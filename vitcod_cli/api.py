"""Models for people who call vitcod from Python: load, save. :mod:`vitcod_cli` shows them all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import prepare_inference
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import AttentionKernel, ModelSettings
from vitcod_cli.reporting import QUIET, Reporter


class Transform:
    """From an image to what its model takes: resized, cropped, normalised."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self._resize_and_crop = preprocess.eval_transform()

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any size and mode to float32 [C, H, W]."""
        pixels = self._resize_and_crop(image.convert(self.preprocess.mode))
        return self.preprocess.to_device(pixels[None], torch.device("cpu"))[0]


def load(
    checkpoint: str | os.PathLike[str],
    *,
    mask: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    inference: bool = True,
    attention: AttentionKernel = "auto",
    model: str | None = None,
    img_size: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    reporter: Reporter = QUIET,
) -> Transformer:
    """A model ready to run: weights loaded, mask applied, in eval mode on ``device``.

    It is a Vision Transformer of timm: images [B, C, H, W] give logits [B, num_classes]. Its ``transform``
    takes a PIL image to the float32 [C, H, W] that it expects; timm's own way,
    ``timm.data.resolve_model_data_config(model)``, says the same.

    Args:
        checkpoint: ours, timm's or the published code's; a path, an ``https://`` address, or ``timm`` for the
            pretrained weights of ``model``.
        mask: from ``gen-mask``, or a published ``.npy``; a sparse checkpoint holds its own.
        inference: fold the auto-encoders and prepare the mask, which is faster; False for a model to train
            or to save.
        attention: how layers with a mask compute then: ``auto``, or as ``vitcod eval --attention`` says.
        model, img_size, model_kwargs: of the timm model, where the checkpoint doesn't say or is to be another.

    Raises:
        VitcodError: if a file can't be read, or they don't fit together.
    """
    kwargs = [f"{name}={value!r}" for name, value in (model_kwargs or {}).items()]
    network = load_model(
        ModelSettings(model=model, img_size=img_size, model_kwargs=kwargs),
        os.fspath(checkpoint),
        flag="checkpoint",
        reporter=reporter,
        mask=None if mask is None else os.fspath(mask),
    )
    network.to(device).eval()
    if inference:
        prepare_inference(network, attention=attention)
    preprocess = preprocess_of(network)
    network.transform = Transform(preprocess)  # type: ignore[assignment]
    network.pretrained_cfg = {**network.pretrained_cfg, **vars(preprocess)}  # type: ignore[assignment, dict-item]
    return network


def save(model: Transformer, path: str | os.PathLike[str]) -> None:
    """Write ``model``, its mask included, as a checkpoint of ours: whole or not at all.

    Raises:
        VitcodError: if it was prepared for inference, or the file can't be written.
    """
    save_model(path, model, {"made_by": "vitcod_cli.save"})
