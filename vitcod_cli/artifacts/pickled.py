"""``.pth`` files, read and written: PyTorch's pickles, of which only plain data is ever unpickled."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path, first_line
from vitcod_cli.errors import VitcodError


def _allowed() -> list[Any]:
    """What published checkpoints hold beside tensors and plain containers, all of it mere data."""
    import pathlib

    import numpy as np

    # numpy scalars: the best accuracy so far, in `args` or beside the weights.
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}
    return [
        argparse.Namespace,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        np.dtype,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
        *kinds,
    ]


def load_pickled(path: Path, source: str, flag: str) -> Any:
    """The content of a PyTorch file, on the CPU; anything but plain data is refused.

    Raises:
        VitcodError: if it is no PyTorch file, is cut short, or holds other Python objects.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _refused(str(error))
        if refused is None:  # torch's own message advises to switch the check off
            raise VitcodError(f"{flag} {source} is not a whole PyTorch checkpoint; get it again.") from error
        raise VitcodError(
            f"{flag} {source} holds a Python object ({refused}) that could run code when loaded, so it is "
            "refused; save its weights alone (torch.save of model.state_dict())."
        ) from error
    # What a damaged file raises depends on where it is damaged.
    except Exception as error:
        message = f"{flag} {source} is not a whole PyTorch checkpoint ({first_line(error)}); get it again."
        raise VitcodError(message) from error


def _refused(message: str) -> str | None:
    """The name of the object that torch refused to unpickle."""
    match = re.search(r"GLOBAL (\S+)", message) or re.search(r"Unsupported (?:class|global|type):? (\S+)", message)
    return match[1].strip("`'\"") if match else None


def write_pickled(path: str | os.PathLike[str], content: Any) -> None:
    """``torch.save`` that replaces the file whole or not at all."""
    import torch

    # Through memory: torch hides a full disk behind an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
