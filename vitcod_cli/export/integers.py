"""Weights as 8-bit integers with a scale a row, for people who feed them to hardware. Needs numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
"""Of the integers; -128 is left out, so that they are symmetric."""


def int8_weights(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Each matrix as int8 ``NAME`` and float32 ``NAME.scale`` [rows, 1, ...], whose product is nearest to it.

    Embeddings, biases and norms stay float32. A row is what makes one output channel.

    Args:
        weights: by name; finite.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, values in weights.items():
        if values.ndim < 2 or not name.endswith(".weight"):
            arrays[name] = values.astype(np.float32)
            continue
        largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
        scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
        arrays[name] = np.rint(values / scale).clip(-LARGEST, LARGEST).astype(np.int8)
        arrays[f"{name}.scale"] = scale
    return arrays
