"""Whether a calibration can work at all: a fitting teacher, enough images, enough memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitcod_cli import distributed
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import available_gpu_memory, available_memory, gigabytes, local_processes
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import attention_shape, attentions

_ACTIVATIONS = 20
"""Floats that the backward pass of a block keeps for each channel of a token, roughly."""


def checked_teacher(student: VisionTransformer, teacher: nn.Module | None, flag: str) -> VisionTransformer:
    """``teacher``, once it is known to have the blocks, tokens and width of ``student``, and to take its images.

    Raises:
        VitcodError: if it hasn't; ``flag`` is the option that named it.
    """

    def shape(model: Any) -> tuple[int, int, int] | None:
        if not isinstance(model, VisionTransformer):
            return None
        return len(model.blocks), model.patch_embed.num_patches + model.num_prefix_tokens, model.embed_dim

    expected, actual = shape(student), shape(teacher)
    if expected is None or actual is None:
        raise VitcodError(
            f"{flag} must be a Vision Transformer to calibrate block by block; use --calibrate-steps 0."
        )
    if expected != actual:
        raise VitcodError(
            f"{flag} has {actual[0]} blocks, {actual[1]} tokens and width {actual[2]}, but "
            f"{model_config(student).model} has {expected[0]}, {expected[1]} and {expected[2]}: block-wise "
            "calibration needs the same; use --calibrate-steps 0 with this teacher."
        )
    assert isinstance(teacher, VisionTransformer)
    if _input_of(teacher) != _input_of(student):
        raise VitcodError(
            f"{flag} takes {_input_of(teacher)}, but {model_config(student).model} takes {_input_of(student)}: "
            "block-wise calibration needs the same; take another teacher, or --calibrate-steps 0."
        )
    return teacher


def _input_of(model: VisionTransformer) -> str:
    """Its images, and the tokens that it puts before their patches."""
    embedding = model.patch_embed
    size = " x ".join(map(str, embedding.img_size or ()))
    return (
        f"images of {size} in {embedding.proj.in_channels} channels, with {model.num_prefix_tokens} tokens before"
    )


def least_images(settings: CalibrationSettings) -> int:
    """The fewest images with which every process has one to fit to, and one more is held out to judge by."""
    return distributed.world_size() + 1 if settings.enabled else 1


def check_count(available: int, settings: CalibrationSettings) -> None:
    """Raise a VitcodError if there are fewer images than :func:`least_images`.

    Args:
        available: images of the data set.
    """
    least = least_images(settings)
    if settings.calibrate_images < least:
        raise VitcodError(
            f"--calibrate-images {settings.calibrate_images} is too few: {_why(least)}; give at least {least}, or "
            "leave calibration out with --calibrate-steps 0."
        )
    if available < least:
        raise VitcodError(
            f"{available} training images are too few to calibrate with: {_why(least)}; take more, or leave "
            "calibration out with --calibrate-steps 0."
        )


def check_shares(
    images: CalibrationImages, settings: CalibrationSettings, flag: str = "--calibrate-images"
) -> None:
    """Raise a VitcodError if what could be read is not enough; all processes call it together.

    Args:
        flag: the option that says how many are asked for.
    """
    shares = distributed.gather_objects(len(images) // images.crops)
    if sum(shares) == 0:
        raise VitcodError("Not one of the calibration images could be read; look at --data-path.")
    if settings.enabled and (min(shares) < 1 or max(shares) < 2):
        each = "" if len(shares) == 1 else f" (by process: {', '.join(map(str, shares))})"
        raise VitcodError(
            f"Only {sum(shares)} calibration images could be read{each}: {_why(least_images(settings))}; mend the "
            f"images, give more {flag}, or leave calibration out with --calibrate-steps 0."
        )


def _why(least: int) -> str:
    processes = distributed.world_size()
    every = "one is fitted to" if processes == 1 else f"each of the {processes} processes fits to one"
    return f"{every} and one more is held out to judge by, which makes {least}"


def check_memory(
    model: VisionTransformer,
    preprocess: Preprocess,
    available: int,
    settings: CalibrationSettings,
    device: torch.device,
    *,
    flag: str = "--calibrate-images",
) -> None:
    """Raise a VitcodError if images, tokens and a step will not fit in memory; all processes call it together.

    Args:
        available: images of the data set.
        flag: the option that says how many of them are taken.
    """
    count = min(settings.calibrate_images, available)
    crops = settings.calibrate_crops if settings.enabled else 1
    views = math.ceil(count / distributed.world_size()) * crops
    pixels, tokens = views * math.prod(preprocess.input_size), _tokens_memory(model, views, settings)
    on_gpu = device.type == "cuda"
    main = local_processes() * (pixels + (0 if on_gpu else tokens))
    for need, left, what in (
        (main, available_memory(), "main memory"),
        (tokens if on_gpu else 0, available_gpu_memory(device), "GPU memory"),
    ):
        most = min((value for value in distributed.gather_objects(left) if value is not None), default=need)
        if need > most:
            raise VitcodError(
                f"Calibration on {count} images in {crops} crops needs about {gigabytes(need)} of {what}, and "
                f"{gigabytes(most)} are left; lower {flag} (to {int(count * most / need)}, say), "
                "--calibrate-crops or --calibrate-batch-size."
            )


def _tokens_memory(model: VisionTransformer, views: int, settings: CalibrationSettings) -> int:
    """Bytes of the student's and the teacher's tokens, and of one step on some of them."""
    if not settings.enabled:
        return 0
    tokens, width = attention_shape(model)[-1], int(model.embed_dim)
    batch = min(views, max(1, settings.calibrate_batch_size // distributed.world_size()))
    step = batch * (tokens * width * _ACTIVATIONS + 3 * attentions(model)[0].num_heads * tokens**2)
    return 4 * (2 * views * tokens * width + step)
