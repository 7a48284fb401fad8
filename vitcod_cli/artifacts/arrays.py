"""Reading a published ``.npy`` array, with every way it can be wrong told in one sentence."""

from __future__ import annotations

import os

import numpy as np

from vitcod_cli.artifacts.describe import in_words
from vitcod_cli.artifacts.files import checked_path, first_line
from vitcod_cli.errors import VitcodError


def is_npy(path: str | os.PathLike[str], flag: str) -> bool:
    """True if the file starts as a ``.npy`` file does, whatever its name."""
    with open(checked_path(path, flag), "rb") as file:
        return file.read(6) == b"\x93NUMPY"


def read_npy(path: str | os.PathLike[str], flag: str) -> np.ndarray:
    """The array of a ``.npy`` file; never unpickles.

    Raises:
        VitcodError: if the file is cut short or holds Python objects.
    """
    try:
        array: np.ndarray = np.load(checked_path(path, flag), allow_pickle=False)
    except VitcodError:
        raise
    # What a damaged header raises depends on where it is damaged: numpy parses it as Python.
    except Exception as error:
        message = f"{flag} {path} is not a whole .npy array of plain numbers ({first_line(error)}); make it again."
        raise VitcodError(message) from error
    return array


def check_shape(array_shape: tuple[int, ...], path: str | os.PathLike[str], flag: str, noun: str) -> None:
    """Raise a VitcodError unless ``array_shape`` is [L, H, N, N] with nothing empty."""
    if len(array_shape) != 4 or array_shape[2] != array_shape[3] or 0 in array_shape:
        shape = "[" + ", ".join(map(str, array_shape)) + "]"
        raise VitcodError(
            f"{flag} {path} holds an array of shape {shape}, but {noun} is [blocks, heads, tokens, tokens]."
        )


def wrong_file(path: str | os.PathLike[str], flag: str, noun: str) -> VitcodError:
    """The error for a file that is not ``noun``, saying what it seems to be."""
    return VitcodError(f"{flag} {path} is not {noun}: {in_words(path)}.")
