"""What an optimizer keeps of each parameter, found out by a step on parameters of the same shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcod_cli.artifacts.files import first_line
from vitcod_cli.errors import VitcodError
from vitcod_cli.training.recipe import Recipe
from vitcod_cli.training.schedule import make_optimizer

Layout = Mapping[tuple[int, ...], Mapping[str, Any]]
"""By the shape of a parameter: its entries in the optimizer's state, as they are after one step."""


def optimizer_layout(model: nn.Module, recipe: Recipe, device: torch.device) -> Layout:
    """The layout of ``recipe``'s optimizer for the parameters of ``model``.

    Raises:
        VitcodError: if the optimizer can't take a step here, or its state can't be saved.
    """
    shapes = dict.fromkeys(tuple(p.shape) for p in model.parameters() if p.requires_grad)
    dummies = nn.ParameterList(torch.zeros(shape, device=device) for shape in shapes)
    for dummy in dummies:
        dummy.grad = torch.zeros_like(dummy)
    optimizer = make_optimizer(dummies, recipe, lr=recipe.scaled_lr(1))
    try:
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            optimizer.step()
    except Exception as error:  # each optimizer has reasons of its own
        raise VitcodError(
            f"--opt {recipe.opt} does not work in this training ({first_line(error)}); take another, such as "
            "adamw."
        ) from error
    layout = {tuple(dummy.shape): dict(optimizer.state.get(dummy, {})) for dummy in dummies}
    for entries in layout.values():
        check_savable(entries)
    return layout


def check_savable(entries: Mapping[str, Any]) -> None:
    """Raise a VitcodError if the optimizer keeps something that is neither a tensor nor a plain value."""
    strange = [key for key, value in entries.items() if not isinstance(value, Tensor) and not is_plain(value)]
    if strange:
        raise VitcodError(
            f"The state of this --opt can't be saved (its {strange[0]}); choose another, such as adamw."
        )


def is_plain(value: Any) -> bool:
    """Whether JSON can hold ``value``."""
    return value is None or isinstance(value, (bool, int, float, str))


def tensors_of_shape(layout: Layout) -> int:
    """How many tensors as large as the parameter itself the optimizer keeps of each, at most."""
    return max(
        (sum(_shape(value) == shape for value in kept.values()) for shape, kept in layout.items()), default=0
    )


def problem_of(saved: Mapping[str, Any], parameter: Tensor, layout: Layout) -> str | None:
    """What is wrong with the ``saved`` entries of ``parameter``, or None: a name, fit for a message."""
    shape = tuple(parameter.shape)
    kept = layout.get(shape, {})
    if saved and (missing := kept.keys() - saved.keys()):
        return min(missing)
    return next((key for key, value in saved.items() if not _fits(value, key, kept.get(key), shape)), None)


def _fits(value: Any, key: str, like: Any, shape: tuple[int, ...]) -> bool:
    """Whether a saved entry may be what ``like`` became; entries that come with later steps have no ``like``."""
    if isinstance(value, Tensor):
        if isinstance(like, Tensor):
            right = value.shape == like.shape and value.is_floating_point() == like.is_floating_point()
        else:
            right = like is None and (tuple(value.shape) == shape or value.numel() == 1)
        return right and not bool(torch.isnan(value).any()) and (key != "step" or bool((value >= 0).all()))
    if is_number(value):
        return (like is None or is_number(like)) and math.isfinite(value) and (key != "step" or value >= 0)
    return type(value) is type(like)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number, and no flag."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
