"""The published form of our files: ``.pth`` checkpoints and ``.npy`` arrays, written for the published code."""

from __future__ import annotations

import argparse
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


_DEEPEST, _MOST, _LONGEST_INTEGER = 50, 100_000, 1000
"""Of the options in a published checkpoint: levels of nesting, values, bits of an integer."""


def write_npy(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """``numpy.save`` that replaces the file whole or not at all, under exactly this name."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def published_checkpoint(
    state_dict: Mapping[str, Tensor], config: ModelConfig, info: Mapping[str, Any], mask_path: str | None
) -> dict[str, Any]:
    """What the published code saves: ``model``, ``epoch``, and ``args`` as a namespace.

    Args:
        state_dict: the weights, without masks.
        config: of the model; in terms of the published options.
        info: what our checkpoint says of itself; ``args`` of a once published file are kept.
        mask_path: the mask's file, beside the checkpoint, or None for a dense model.
    """
    height, width = config.img_size
    args = {
        **info.get("args", {}),
        "model": config.model,
        "svd_type": None if config.svd_type == "none" else config.svd_type,
        "nb_classes": config.num_classes,
        "input_size": height if height == width else [height, width],
    }
    if config.model_kwargs:
        args["model_kwargs"] = dict(config.model_kwargs)
    if mask_path is not None:
        args["mask_path"] = mask_path
    # Tensors as they come from safetensors may be views of one file: clones are saved as themselves.
    weights = OrderedDict((name, tensor.clone()) for name, tensor in state_dict.items())
    namespace = argparse.Namespace()
    vars(namespace).update(args)  # not as arguments: one may be called self
    return {"model": weights, "epoch": info.get("epoch") or 0, "args": namespace}


def mask_beside(path: str | os.PathLike[str], mask_path: Any) -> Path | None:
    """The mask that a published checkpoint's ``args.mask_path`` names: beside it, or below the current folder.

    A file from a stranger may name one anywhere else, which is not looked at.
    """
    if not isinstance(mask_path, (str, os.PathLike)) or not os.fspath(mask_path):
        return None
    named, folder = Path(mask_path), Path(path).parent
    inside = not named.is_absolute() and ".." not in named.parts
    candidates = (folder / named, named, folder / named.name) if inside else (folder / named.name,)
    # isfile, not is_file: a name that no file can have is no error.
    return next((path for path in candidates if os.path.isfile(path)), None)


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: what published ``args`` hold beside becomes numbers, lists and strings.

    Raises:
        ValueError: if it is nested endlessly, or larger than options of a training are.
    """
    return _plain(value, 0, itertools.count())


def _plain(value: Any, depth: int, counter: Iterator[int]) -> Any:
    # A list that is ten times in the next one, and so on, is small in memory and endless on paper.
    if depth > _DEEPEST or next(counter) > _MOST:
        raise ValueError("its args are nested too deep, or too many")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1, counter) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, depth + 1, counter) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
        raise ValueError("its args hold a number of too many digits")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"a tensor of shape {list(value.shape)}" if hasattr(value, "shape") else str(value)
