"""Whether the disk has room for what a training saves."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import free_space
from vitcod_cli.reporting import Reporter
from vitcod_cli.training.optimizer_layout import Layout, tensors_of_shape
from vitcod_cli.training.recipe import Recipe


def check_space(folder: Path, model: nn.Module, recipe: Recipe, layout: Layout, reporter: Reporter) -> None:
    """Compare the free space at ``folder``, which need not be there yet, with what the run will write.

    A state takes the place of the one before it only when it is whole, and one between epochs may be
    kept: up to three at a time, beside ``last.safetensors`` and ``best.safetensors``. What is there already
    is not counted, so short space is refused only where not even one state fits.

    Raises:
        VitcodError: if there is no room for a single state.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    state = weights * (1 + recipe.model_ema + (tensors_of_shape(layout) if recipe.epochs else 0))
    on_main(lambda: _compare(folder, state, 3 * state + 3 * weights, reporter))


def _compare(folder: Path, least: int, most: int, reporter: Reporter) -> None:
    free = free_space(folder)
    if free is None:
        return  # writing will tell
    if free < least:
        raise VitcodError(
            f"The disk of --output-dir {folder} has {_size(free)} free and the state of this run takes "
            f"{_size(least)}; free some space or choose another folder."
        )
    if free < most:
        reporter.warn(
            f"The disk of --output-dir {folder} has {_size(free)} free; this run may take up to {_size(most)}."
        )


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MB"
