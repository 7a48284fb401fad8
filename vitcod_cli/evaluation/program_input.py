"""What an exported program takes: what it says itself, and what ``vitcod export`` wrote into its file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm

from vitcod_cli.artifacts.model_config import ModelConfig, is_model_name
from vitcod_cli.data.preprocess import Preprocess, preprocess_for
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import default_img_size
from vitcod_cli.model.settings import ModelSettings

_LARGEST_SIDE = 1 << 14
_LARGEST_BATCH = 1 << 29
"""Pixels of all channels and images of a batch; 2 GiB in float32."""


@dataclass(frozen=True)
class Declared:
    """The one input of a program, as its code has it.

    Attributes:
        shape: [B, C, H, W], None where any number will do.
        dtype: ``float32`` or ``uint8``; another program can't be run.
    """

    shape: tuple[int | None, ...]
    dtype: str

    @classmethod
    def of(cls, shape: Sequence[object], dtype: str) -> Declared:
        """Sides that aren't whole numbers (names, symbols) stand for any number."""
        return cls(tuple(side if type(side) is int else None for side in shape), dtype)


@dataclass(frozen=True)
class ProgramInput:
    """How images are made for a program.

    Attributes:
        takes_bytes: uint8 images, which it normalises itself; else normalised float32.
        batch_size: of every batch; None for any.
    """

    preprocess: Preprocess
    takes_bytes: bool
    batch_size: int | None


def input_of(declared: Declared, info: Mapping[str, Any], settings: ModelSettings, where: str) -> ProgramInput:
    """How images are made for a program: as its file says, or, where that says nothing, as ``--model`` takes them.

    Raises:
        VitcodError: if nobody says it, the two contradict each other, or it takes no images.
    """
    if len(declared.shape) != 4 or declared.dtype not in ("float32", "uint8"):
        raise VitcodError(
            f"{where} takes {declared.dtype} {_sides(declared.shape)}, not images [B, C, H, W] as float32 or "
            "uint8; export it again."
        )
    preprocess = _stated(info, where) if "input" in info else _of_model(declared, settings, where)
    if any(own not in (None, side) for own, side in zip(declared.shape[1:], preprocess.input_size, strict=True)):
        raise VitcodError(
            f"{where} takes images {_sides(declared.shape)}, not {_sides(preprocess.input_size)}; "
            + ("export it again." if "input" in info else "leave out --img-size, or name its --model.")
        )
    size = settings.img_size
    if size is not None and preprocess.input_size[1:] != (size, size):
        raise VitcodError(
            f"{where} takes images of {preprocess.input_size[1]}x{preprocess.input_size[2]} pixels, and "
            f"--img-size is {size}; a program keeps its size: leave --img-size out, or export it again."
        )
    batch = declared.shape[0]
    if math.prod(preprocess.input_size) * (batch or 1) > _LARGEST_BATCH:
        raise VitcodError(f"{where} takes batches {_sides(declared.shape)}, which are too large; export it again.")
    return ProgramInput(preprocess, declared.dtype == "uint8", batch)


def _sides(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if side is None else str(side) for side in shape)}]"


def _stated(info: Mapping[str, Any], where: str) -> Preprocess:
    """What ``vitcod export`` has written down."""
    try:
        takes = dict(info["input"])
        size = tuple(int(side) for side in takes["input_size"])
        mean, std = (tuple(float(value) for value in takes[name]) for name in ("mean", "std"))
        crop_pct = float(takes["crop_pct"])
        sound = (
            len(size) == 3
            and len(mean) == len(std) == size[0] in (1, 3)
            and all(0 < side <= _LARGEST_SIDE for side in size)
            and all(abs(value) < 1e6 for value in (*mean, *std))
            and min(std) > 1e-6
            and 0.1 <= crop_pct <= 1
        )
        if not sound:
            raise ValueError("its input is none")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise VitcodError(
            f"{where} says wrongly how its images are to be made; export it again with vitcod export."
        ) from error
    return Preprocess(cast(tuple[int, int, int], size), mean, std, crop_pct=crop_pct)


def _of_model(declared: Declared, settings: ModelSettings, where: str) -> Preprocess:
    """For a program of others: the normalisation of the timm model, the size of the program."""
    if settings.model is None:
        raise VitcodError(
            f"{where} doesn't say how its images are to be normalised, as programs of vitcod export do; name the "
            "timm model that it was made from with --model."
        )
    height, width = default_img_size(settings.model)
    if settings.img_size is not None:
        height = width = settings.img_size
    channels, own_height, own_width = declared.shape[1:]
    cfg = timm.get_pretrained_cfg(settings.model)
    return preprocess_for(
        {} if cfg is None else {"mean": cfg.mean, "std": cfg.std},
        (3 if channels is None else channels, own_height or height, own_width or width),
        DataSettings(),
    )


def config_of(info: Mapping[str, Any]) -> ModelConfig | None:
    """The model that a program was made from; None where its file doesn't say, or nothing that makes sense."""
    try:
        config = ModelConfig.from_dict(info["model_config"])
    except (KeyError, ValueError):
        return None
    return config if is_model_name(config.model) else None


def sparsity_in(info: Mapping[str, Any]) -> float | None:
    """Of the mask that a program was exported with, 0 to 1; None without one, or if its file doesn't say."""
    value = info.get("sparsity")
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return float(cast(float, value)) if sound else None
