"""Reading a published ``.npy`` array, with every way it can be wrong told in one sentence."""

from __future__ import annotations

import mmap
import os
import warnings
from typing import Any

import numpy as np

from vitcod_cli.artifacts.describe import in_words
from vitcod_cli.artifacts.files import checked_path, first_line
from vitcod_cli.artifacts.model_arguments import is_count
from vitcod_cli.errors import VitcodError


def is_npy(path: str | os.PathLike[str], flag: str) -> bool:
    """True if the file starts as a ``.npy`` file does, whatever its name."""
    with open(checked_path(path, flag), "rb") as file:
        return file.read(6) == b"\x93NUMPY"


def read_npy(path: str | os.PathLike[str], flag: str) -> np.ndarray:
    """The array of a ``.npy`` file, memory-mapped and read-only; never unpickles.

    Raises:
        VitcodError: if the file is cut short or holds Python objects.
    """
    try:
        # Mapped, which compares the size of the file with what its header claims before taking any memory.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the Python that a damaged header is
            mapped = np.load(checked_path(path, flag), mmap_mode="r", allow_pickle=False)
        # There are types of no bytes, of which a file holds as many as it likes.
        if mapped.dtype.kind not in "biufc":
            raise ValueError(f"it holds {str(mapped.dtype)[:40]}")
        if os.path.getsize(path) != mapped.offset + mapped.nbytes:
            raise ValueError("there are bytes behind its numbers")
        if mapped.dtype == np.bool_ and mapped.size and mapped.view(np.uint8).max() > 1:
            raise ValueError("some of its truth values are neither true nor false")
    except VitcodError:
        raise
    # What a damaged header raises depends on where it is damaged: numpy parses it as Python.
    except Exception as error:
        message = f"{flag} {path} is not a whole .npy array of plain numbers ({first_line(error)}); make it again."
        raise VitcodError(message) from error
    return np.asarray(mapped)


def release_pages(array: np.ndarray) -> None:
    """Give back the main memory that a memory-mapped array takes so far; what is needed again is read again.

    The system would take it back too, but only in need. Other arrays stay as they are.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:  # what was written may be nowhere else
            return
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


_SHOWN = 8
"""Dimensions of a wrong shape that are told: a header may claim thousands."""


def check_shape(array_shape: tuple[int, ...], path: str | os.PathLike[str], flag: str, noun: str) -> None:
    """Raise a VitcodError unless ``array_shape`` is [L, H, N, N] with nothing empty."""
    if len(array_shape) != 4 or array_shape[2] != array_shape[3] or 0 in array_shape:
        shape = "[" + ", ".join(map(str, array_shape[:_SHOWN])) + (", ...]" if len(array_shape) > _SHOWN else "]")
        raise VitcodError(
            f"{flag} {path} holds an array of shape {shape}, but {noun} is [blocks, heads, tokens, tokens]."
        )


def checked_info(
    info: dict[str, Any], num_tokens: int, path: str | os.PathLike[str], flag: str, noun: str
) -> dict[str, Any]:
    """``info`` of a map or a mask, once what it says of its model can be.

    Raises:
        VitcodError: if ``model_config`` is no model's, or a count of prefix tokens is none of its tokens.
    """
    for name in ("num_prefix_tokens", "map_num_prefix_tokens"):
        prefix = info.get(name)
        if prefix is not None and not is_count(prefix, 0, num_tokens):
            raise VitcodError(
                f"{flag} {path} says that its {name} are {repr(prefix)[:40]}, which is not a number of its "
                f"{num_tokens} tokens; make {noun} again."
            )
    config = info.get("model_config", {"model": ""})
    if not isinstance(config, dict) or not isinstance(config.get("model"), str):
        raise VitcodError(f"{flag} {path} has a model_config that names no model; make {noun} again.")
    return info


def wrong_file(path: str | os.PathLike[str], flag: str, noun: str) -> VitcodError:
    """The error for a file that is not ``noun``, saying what it seems to be."""
    return VitcodError(f"{flag} {path} is not {noun}: {in_words(path)}.")
