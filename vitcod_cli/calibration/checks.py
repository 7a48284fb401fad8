"""Whether a calibration can work at all: a fitting teacher, enough images, enough memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcod_cli import distributed
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.distributed import least
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import available_gpu_memory, available_memory, free_space, gigabytes, local_processes
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer, num_tokens
from vitcod_cli.model.layers import attention_shape, attentions

_ACTIVATIONS = 20
"""Floats that the backward pass of a block keeps for each channel of a token, roughly."""


def checked_teacher(student: Transformer, teacher: nn.Module | None, flag: str) -> Transformer:
    """``teacher``, once it is known to have the blocks, tokens and width of ``student``, and to take its images.

    Raises:
        VitcodError: if it hasn't; ``flag`` is the option that named it.
    """

    def shape(model: Any) -> tuple[int, int, int] | None:
        if not isinstance(model, Transformer):
            return None
        return len(model.blocks), num_tokens(model), model.embed_dim

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
    assert isinstance(teacher, Transformer)
    if _input_of(teacher) != _input_of(student):
        raise VitcodError(
            f"{flag} takes {_input_of(teacher)}, but {model_config(student).model} takes {_input_of(student)}: "
            "block-wise calibration needs the same; take another teacher, or --calibrate-steps 0."
        )
    return teacher


def _input_of(model: Transformer) -> str:
    """Its images, and the tokens that it puts before their patches."""
    embedding: Any = model.patch_embed
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
    model: Transformer,
    preprocess: Preprocess,
    available: int,
    settings: CalibrationSettings,
    *,
    device: torch.device,
    folder: Path,
    flag: str = "--calibrate-images",
) -> None:
    """Raise a VitcodError if images, tokens and a step will not fit; all processes call it together.

    Images and a step must fit into memory, tokens into memory or a file.

    Args:
        available: images of the data set.
        folder: for tokens that don't fit into memory; it need not be there yet.
        flag: the option that says how many of them are taken.
    """
    count = min(settings.calibrate_images, available)
    crops = settings.crops(count)
    views = math.ceil(count / distributed.world_size()) * crops
    images = views * math.prod(preprocess.input_size)
    tokens, step = tokens_bytes(model, views, settings), step_bytes(model, views, settings)
    on_gpu, processes = device.type == "cuda", local_processes()
    main = processes * (images + (0 if on_gpu else step))
    left = least(available_memory(), main + processes * tokens)
    space = least(free_space(folder), processes * tokens)
    gpu = least(available_gpu_memory(device), tokens + step) if on_gpu else 0
    spilled = main + processes * tokens > left and not (on_gpu and tokens + step <= gpu)
    for need, most, what in (
        (main, left, "main memory"),
        (step if on_gpu else 0, gpu, "GPU memory"),
        (processes * tokens if spilled else 0, space, f"memory or of the disk of {folder}"),
    ):
        if need > most:
            raise VitcodError(
                f"Calibration on {count} images in {crops} crops needs about {gigabytes(need)} of {what}, and "
                f"{gigabytes(most)} are left; lower {flag} (to {int(count * most / need)}, say), "
                "--calibrate-crops or --calibrate-batch-size."
            )


def tokens_bytes(model: Transformer, views: int, settings: CalibrationSettings) -> int:
    """Bytes of the tokens of ``views`` images: the student's, and the teacher's around the blocks of a step."""
    stores = 3 + min(Depth.ahead, len(model.blocks) - 1)
    return stores * 4 * views * attention_shape(model)[-1] * int(model.embed_dim) if settings.enabled else 0


def step_bytes(model: Transformer, views: int, settings: CalibrationSettings) -> int:
    """Bytes of one step, through what is fitted and blocks behind it, on some of ``views`` images, about."""
    if not settings.enabled:
        return 0
    tokens, width = attention_shape(model)[-1], int(model.embed_dim)
    batch = min(views, max(1, settings.calibrate_batch_size // distributed.world_size()))
    blocks, depth = len(model.blocks), Depth()
    own = depth.early(blocks) if settings.calibrate_joint_steps else 1
    blocks = min(own + depth.ahead, blocks)
    return blocks * 4 * batch * (tokens * width * _ACTIVATIONS + 3 * attentions(model)[0].num_heads * tokens**2)
