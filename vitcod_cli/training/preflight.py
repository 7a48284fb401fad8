"""What can be known to fail before a run begins: before a folder is emptied or a model is loaded.

Names and combinations that only timm can judge are tried on something tiny.
"""

from __future__ import annotations

import importlib.util
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.optim import get_optimizer_info, list_optimizers  # type: ignore[attr-defined]
from torch import nn

from vitcod_cli.artifacts.files import first_line
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.splits import Images
from vitcod_cli.errors import VitcodError, did_you_mean
from vitcod_cli.model.families import Transformer
from vitcod_cli.runtime import Runtime
from vitcod_cli.training.loggers import missing_package
from vitcod_cli.training.recipe import Recipe
from vitcod_cli.training.schedule import EpochSchedule, make_optimizer

_POLICIES = {
    # kind: names of its sections that hold a number (timm skips others without a word)
    "rand": ("m", "n", "p", "mstd", "mmax", "inc"),
    "augmix": ("m", "w", "d", "a", "b", "mstd"),
    "original": ("mstd",),
    "originalr": ("mstd",),
    "v0": ("mstd",),
    "v0r": ("mstd",),
    "3a": ("mstd",),
}
_TRANSFORM_SETS = ("tweights", "t3a", "t3aw")
_MOST = 100
"""The largest number in a policy: twenty times what anybody uses, and done in a moment."""


def check_recipe(recipe: Recipe, augmentation: AugmentationSettings) -> None:
    """Try optimizer, schedule, augmentation policy and loggers; leaves no trace, random generators included.

    Raises:
        VitcodError: for what timm doesn't know, what doesn't go together, or a package that isn't installed.
    """
    check_loggers(recipe.loggers)
    with _own_randomness():
        if not augmentation.no_aug:
            check_policy(augmentation)
        if recipe.epochs > 0:
            check_optimizer(recipe)


def check_parts(
    model: Transformer,
    images: Images,
    recipe: Recipe,
    augmentation: AugmentationSettings,
    teacher: nn.Module | None,
) -> None:
    """Raise a VitcodError where settings, images and models don't go together."""
    if not images.train.labelled and recipe.epochs and recipe.uses_labels:
        raise VitcodError(
            "--dataset images has no labels to train on; learn from a model (--distill-from CHECKPOINT, or "
            "--teacher with --no-labels), or end before training with --epochs 0."
        )
    if recipe.epochs and augmentation.mixes and recipe.batch_size % 2:
        raise VitcodError(
            f"--batch-size {recipe.batch_size} must be even with mixup and cutmix, which pair the images of a "
            "batch; change it, or turn them off with --mixup 0 --cutmix 0."
        )
    for split, data in (("training", images.train), ("validation", images.val)):
        if 0 < model.num_classes < data.num_classes:
            raise VitcodError(
                f"The {split} images have {data.num_classes} classes but the model only {model.num_classes}; give "
                f"--num-classes {data.num_classes}."
            )
    classes = getattr(teacher, "num_classes", model.num_classes)
    if classes != model.num_classes:
        raise VitcodError(f"The teacher has {classes} classes and the model {model.num_classes}; they must agree.")


@torch.no_grad()
def check_teacher(teacher: nn.Module, recipe: Recipe, preprocess: Preprocess, runtime: Runtime) -> None:
    """Let the teacher see an image: nothing else tells whether it takes them in the student's size."""
    flag = "--distill-from" if recipe.distill_from is not None else "--teacher"
    try:
        with runtime.autocast():
            teacher(runtime.to_device(torch.zeros(1, *preprocess.input_size)))
    except Exception as error:  # any model of timm's, in its own words
        size = "x".join(map(str, preprocess.input_size))
        raise VitcodError(
            f"{flag} {recipe.teacher_source} fails on the student's images of {size} ({first_line(error)}); "
            "take a teacher for images of this size."
        ) from error


def check_loggers(names: Sequence[str]) -> None:
    """Raises a VitcodError if the package of a logger isn't installed."""
    for name in names:
        if name in sys.modules:
            found = sys.modules[name] is not None
        else:
            found = importlib.util.find_spec(name) is not None
        if not found:
            raise missing_package(name)


def check_optimizer(recipe: Recipe) -> None:
    """Build the optimizer and its schedule over a tiny layer, and make a step.

    Raises:
        VitcodError: if there is none of this name, or it doesn't work with these arguments.
    """
    name = recipe.opt.lower().removeprefix("lookahead_")
    names = [str(known) for known in list_optimizers()]
    if name not in names:
        hint = did_you_mean(name, names, "take one of timm's, such as adamw, sgd or lamb.")
        raise VitcodError(f"--opt {recipe.opt} is no optimizer of timm's; {hint}")
    info = get_optimizer_info(name)
    _refuse_what_it_lacks(recipe, info)
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer(layer, recipe, lr=recipe.scaled_lr(1))
    if not isinstance(info.opt_class, str):  # those of other packages work on a GPU alone
        try:
            with torch.compiler.set_stance("force_eager"):  # compiling kron takes twenty seconds
                layer(torch.randn(4, 3)).square().mean().backward()
                optimizer.step()
        except (ValueError, TypeError, AssertionError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise VitcodError(
                f"--opt {recipe.opt} does not work in this training ({first_line(error)}); take another, such as "
                "adamw."
            ) from error
    _check_schedule(optimizer, recipe)


def _refuse_what_it_lacks(recipe: Recipe, info: Any) -> None:
    """timm leaves out without a word what an optimizer doesn't take."""
    given = {
        "--opt-eps": (recipe.opt_eps != Recipe.opt_eps, info.has_eps),
        "--opt-betas": (recipe.opt_betas is not None, info.has_betas),
        "--momentum": (recipe.momentum != Recipe.momentum, info.has_momentum),
    }
    for flag, (is_given, is_taken) in given.items():
        if is_given and not is_taken:
            raise VitcodError(f"{flag} means nothing to --opt {recipe.opt}; leave it out.")


def _check_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    epochs = sorted({round(epoch) for epoch in np.linspace(0, max(recipe.total_epochs - 1, 0), 200)})
    try:
        schedule = EpochSchedule(optimizer, recipe)
        rates = [schedule.set_epoch(epoch) for epoch in epochs]
    except (ValueError, ArithmeticError) as error:
        raise VitcodError(f"{_schedule_flags(recipe)} can't be followed ({first_line(error)}).") from error
    if not all(isinstance(rate, float | int) and math.isfinite(rate) for rate in rates):
        raise VitcodError(f"{_schedule_flags(recipe)} give learning rates that are no finite numbers.")


def _schedule_flags(recipe: Recipe) -> str:
    epochs, rate = recipe.decay_epochs, recipe.decay_rate
    return f"--sched {recipe.sched} with --decay-epochs {epochs:g} and --decay-rate {rate:g}"


def check_policy(augmentation: AugmentationSettings) -> None:
    """Parse ``--aa`` more strictly than timm, and try the training transform on a small image.

    Raises:
        VitcodError: naming the part of the policy that means nothing.
    """
    policy = augmentation.policy
    if policy is not None:
        _check_sections(policy)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    preprocess = Preprocess(
        input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
    )
    transform = preprocess.train_transform(augmentation)
    try:
        for _ in range(4):
            transform(image)
    except Exception as error:  # whatever a combination that nobody has tried raises inside timm
        raise VitcodError(
            f"The augmentation fails on an image ({first_line(error)}): change --aa {augmentation.aa} or "
            "--color-jitter; --aa none turns the policy off."
        ) from error


def _check_sections(policy: str) -> None:
    kind, *sections = policy.split("-")
    if kind not in _POLICIES:
        hint = did_you_mean(kind, _POLICIES, "use one such as rand-m9-mstd0.5-inc1, 3a or none.")
        raise VitcodError(f"--aa {policy}: {kind!r} is no policy of timm's; {hint}")
    for section in sections:
        if kind == "rand" and section in _TRANSFORM_SETS:
            continue
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", section, re.ASCII)
        if match is None or match[1] not in _POLICIES[kind]:
            known = ", ".join(_POLICIES[kind])
            raise VitcodError(
                f"--aa {policy}: {section!r} means nothing to {kind}; its parts are one of {known} and a "
                "number, as in rand-m9-mstd0.5-inc1."
            )
        if match[1] != "mstd" and float(match[2]) > _MOST:
            raise VitcodError(f"--aa {policy}: {section} is too large; numbers go up to {_MOST}.")
        if match[1] in ("n", "w") and float(match[2]) == 0:
            raise VitcodError(f"--aa {policy}: {section} changes nothing; take at least 1, or --aa none.")


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Put the random generators back at the end: a check must not change what a run draws."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
