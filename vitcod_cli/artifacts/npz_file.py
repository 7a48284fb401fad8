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


def is_npz(path: str | Path | None) -> bool:
    """Whether the name of a file asks for it."""
    return path is not None and Path(path).suffix.lower() == SUFFIX


def write_npz(path: str | Path, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any] | None = None) -> None:
    """Write ``arrays``, compressed, whole or not at all; nothing in the file needs pickle.

    Args:
        info: goes in, as JSON, under the name ``vitcod``.

    Raises:
        VitcodError: if it can't be written.
    """
    more = {} if info is None else {METADATA_KEY: np.array(json.dumps(info))}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays, **more)
