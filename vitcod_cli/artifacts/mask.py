"""The fixed attention pattern of a model: what ``gen-mask`` writes. Imports numpy only.

Everywhere in vitcod True means *kept*. A published ``.npy`` says the opposite (True = pruned); it is
inverted here on the way in, and in :func:`published_mask` on the way out, and nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitcod_cli.artifacts.arrays import check_shape, checked_info, is_npy, read_npy, wrong_file
from vitcod_cli.artifacts.describe import MASK
from vitcod_cli.artifacts.safetensors_file import checked_kind, open_safetensors, write_safetensors
from vitcod_cli.errors import VitcodError


@dataclass(frozen=True)
class Mask:
    """Which query may look at which key.

    Attributes:
        keep: bool [L, H, N, N]; True = kept.
        info: how it was made (method, arguments, ``made_from`` sha256 of the map); empty for a
            published ``.npy``.
    """

    keep: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)


def read_mask(path: str | os.PathLike[str], flag: str = "--mask") -> Mask:
    """Read our mask, or a published ``.npy`` whose True = pruned is inverted here.

    Raises:
        VitcodError: if the file is no mask.
    """
    if is_npy(path, flag):
        pruned = read_npy(path, flag)
        if pruned.dtype != np.bool_:
            raise wrong_file(path, flag, "a mask")
        check_shape(pruned.shape, path, flag, "a mask")
        return Mask(~np.ascontiguousarray(pruned))
    with open_safetensors(path, flag=flag) as (handle, metadata):
        info = checked_kind(metadata, path, kind=MASK, flag=flag)
        if "keep" not in handle.keys() or handle.get_slice("keep").get_dtype() != "BOOL":  # noqa: SIM118
            raise VitcodError(f"{flag} {path} lacks its boolean mask; make it again with vitcod gen-mask.")
        keep = handle.get_tensor("keep")
    check_shape(keep.shape, path, flag, "a mask")
    return Mask(keep, checked_info(info, keep.shape[-1], path, flag, "the mask"))


def write_mask(path: str | os.PathLike[str], mask: Mask) -> None:
    """Write a mask atomically.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    write_safetensors(path, {"keep": np.asarray(mask.keep, dtype=np.bool_)}, MASK, mask.info)


def published_mask(mask: Mask) -> np.ndarray:
    """The mask as the published code has it: bool [L, H, N, N], True = pruned."""
    return ~mask.keep
