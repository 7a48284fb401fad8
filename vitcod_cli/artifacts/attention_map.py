"""The mean attention map of a model: what ``dump-attn`` writes and ``gen-mask`` reads. Imports numpy only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitcod_cli.artifacts.arrays import check_shape, checked_info, is_npy, read_npy, release_pages, wrong_file
from vitcod_cli.artifacts.describe import ATTENTION_MAP
from vitcod_cli.artifacts.safetensors_file import checked_kind, map_tensor, open_safetensors, write_safetensors
from vitcod_cli.errors import VitcodError


@dataclass(frozen=True)
class AttentionMap:
    """Attention probabilities averaged over images.

    Attributes:
        attention: float32 [L, H, N, N]; rows sum to 1. Read from a file it is memory-mapped and read-only.
        num_images: how many images were averaged (0: unknown, a published ``.npy``).
        info: how it was made: ``model_config``, ``num_prefix_tokens``, ``made_from`` (sha256 of
            the checkpoint), ...; empty for a published ``.npy``.
        importance: float32 [L, H, N, N] or None; the rank of every entry by the sensitivity of the model's
            output to it (:mod:`vitcod_cli.attention.importance`).
    """

    attention: np.ndarray
    num_images: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    importance: np.ndarray | None = None


def read_attention_map(path: str | os.PathLike[str], flag: str = "--attn-map") -> AttentionMap:
    """Read our attention map or a published ``.npy``.

    Raises:
        VitcodError: if the file is no attention map, or holds anything but finite probabilities.
    """
    if is_npy(path, flag):
        attention = read_npy(path, flag)
        if attention.dtype.kind != "f":
            raise wrong_file(path, flag, "an attention map")
        check_shape(attention.shape, path, flag, "an attention map")
        attention_map = AttentionMap(attention)
    else:
        attention_map = _read_own(path, flag)
    checked_info(attention_map.info, attention_map.attention.shape[-1], path, flag, "the map")
    for values in (attention_map.attention, attention_map.importance):
        if values is None:
            continue
        # A NaN fails both comparisons, so two reductions see everything.
        if not (values.min() >= 0 and values.max() < np.inf):
            raise VitcodError(
                f"{flag} {path} holds values that are negative or not finite, so it is no attention map; make it "
                "again with vitcod dump-attn."
            )
        release_pages(values)
    return replace(attention_map, attention=np.ascontiguousarray(attention_map.attention, dtype=np.float32))


def map_shape(path: str | os.PathLike[str], flag: str = "--attn-map") -> tuple[int, ...]:
    """What the file of a map says of its shape, before any of its numbers is read; () where it says none.

    Raises:
        VitcodError: if the file is none that a map may be in.
    """
    if is_npy(path, flag):
        return read_npy(path, flag).shape
    with open_safetensors(path, flag=flag, verify=False) as (handle, _):
        names = handle.keys()
        return tuple(handle.get_slice("attention").get_shape()) if "attention" in names else ()


def _read_own(path: str | os.PathLike[str], flag: str) -> AttentionMap:
    with open_safetensors(path, flag=flag) as (handle, metadata):
        info = checked_kind(metadata, path, kind=ATTENTION_MAP, flag=flag)
        tensors = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        dtypes = {name: tensor.get_dtype() for name, tensor in tensors.items()}
        important = dtypes.pop("importance", None)
        if dtypes != {"attention": "F32", "num_images": "I64"} or tensors["num_images"].get_shape() != [1]:
            raise VitcodError(f"{flag} {path} lacks attention or num_images; make it again with vitcod dump-attn.")
        shapes = [tensors[name].get_shape() for name in ("attention", "importance") if name in tensors]
        if important not in (None, "F32") or shapes != shapes[:1] * len(shapes):
            raise VitcodError(
                f"{flag} {path} holds an importance that is not like its attention; make it again with vitcod "
                "dump-attn."
            )
        check_shape(tuple(shapes[0]), path, flag, "an attention map")
        importance = None if important is None else map_tensor(path, "importance", "<f4")
        num_images = int(handle.get_tensor("num_images")[0])
        if num_images < 0:
            raise VitcodError(
                f"{flag} {path} is a mean of {num_images} images; make it again with vitcod dump-attn."
            )
        return AttentionMap(map_tensor(path, "attention", "<f4"), num_images, info, importance)


def write_attention_map(path: str | os.PathLike[str], attention_map: AttentionMap) -> None:
    """Write an attention map atomically.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    tensors: dict[str, np.ndarray] = {
        "attention": np.asarray(attention_map.attention, dtype=np.float32),
        "num_images": np.array([attention_map.num_images], dtype=np.int64),
    }
    if attention_map.importance is not None:
        tensors["importance"] = np.asarray(attention_map.importance, dtype=np.float32)
    write_safetensors(path, tensors, ATTENTION_MAP, attention_map.info)
