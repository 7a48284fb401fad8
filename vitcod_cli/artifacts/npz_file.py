"""Arrays as an ``.npz`` file, for programs that have numpy and no safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.describe import METADATA_KEY
from vitcod_cli.artifacts.files import atomic_path

SUFFIX = ".npz"


def is_npz(path: str | Path) -> bool:
    """Whether the name of a file asks for it."""
    return Path(path).name.lower().endswith(SUFFIX)


def write_npz(path: str | Path, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any] | None = None) -> None:
    """Write ``arrays``, compressed, whole or not at all; nothing in the file needs pickle.

    Args:
        arrays: by name, of any shape; of numbers or truth values.
        info: goes in, as JSON in a 0-d array of text, under the name ``vitcod``.

    Raises:
        TypeError: if an array holds Python objects.
        VitcodError: if it can't be written.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:  # numpy < 2.2 pickles those, and takes allow_pickle=False for one more array
            raise TypeError(f"{name} holds Python objects")
    content: dict[str, Any] = dict(arrays)
    if info is not None:
        content[METADATA_KEY] = np.array(json.dumps(info))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **content)
