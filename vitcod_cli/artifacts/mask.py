"""The fixed attention pattern of a model: what ``gen-mask`` writes. Imports numpy only.

Everywhere in vitcod True means *kept*. A published ``.npy`` says the opposite (True = pruned); it is
inverted here on the way in, and in :func:`published_mask` on the way out, and nowhere else.

A file holds ``keep``, bool [L, H, N, N], as any program reads it; a mask of more than :data:`PACKED` entries is
``keep_bits`` instead, uint8 [L, H, N, ceil(N / 8)], as ``numpy.packbits(keep, axis=-1)`` makes it.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitcod_cli.artifacts.arrays import check_shape, checked_info, is_npy, read_npy, wrong_file
from vitcod_cli.artifacts.describe import MASK
from vitcod_cli.artifacts.safetensors_file import checked_kind, open_safetensors, write_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import available_memory, gigabytes, local_processes

MASK_NAME = re.compile(r"blocks\.([0-9]{1,4})\.attn\.keep")
"""What the mask of a block is called in a checkpoint, and the number of its block."""
PACKED = 2**27
"""Entries beyond which a mask is written as bits."""
_BITS, _BITS_VERSION = "keep_bits", 2
_PREFIX = ("cls_token", "dist_token", "reg_token")
"""Tensors [1, tokens, width] of a checkpoint, whose tokens come before the patches."""
_ORDER = ("permutation", "global_tokens")


@dataclass(frozen=True)
class TokenOrder:
    """In which order an accelerator takes the tokens of each head: dense keys first (``masks/polarize.py``).

    Attributes:
        permutation: int32 [L, H, N]: the token at each new position.
        global_tokens: int32 [L, H]: how many keys, the first of the order, are dense.
    """

    permutation: np.ndarray
    global_tokens: np.ndarray


@dataclass(frozen=True)
class Mask:
    """Which query may look at which key.

    Attributes:
        keep: bool [L, H, N, N]; True = kept. In the model's own order of tokens, polarized or not.
        info: how it was made (method, arguments, ``made_from`` sha256 of the map); empty for a
            published ``.npy``.
        order: of a polarized mask.
    """

    keep: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)
    order: TokenOrder | None = None


def read_mask(path: str | os.PathLike[str], flag: str = "--mask") -> Mask:
    """Read our mask, or a published ``.npy`` whose True = pruned is inverted here.

    Raises:
        VitcodError: if the file is no mask, or one that memory has no room for.
    """
    if is_npy(path, flag):
        pruned = read_npy(path, flag)
        if pruned.dtype != np.bool_:
            raise wrong_file(path, flag, "a mask")
        check_shape(pruned.shape, path, flag, "a mask")
        check_mask_memory(pruned.shape, f"{flag} {path}")
        return Mask(~np.ascontiguousarray(pruned))
    with open_safetensors(path, flag=flag, verify=False) as (handle, metadata):  # which takes a while, if large
        checked_kind(metadata, path, kind=MASK, flag=flag)
        _stored_shape(handle, path, flag)
    with open_safetensors(path, flag=flag) as (handle, metadata):
        info = checked_kind(metadata, path, kind=MASK, flag=flag)
        keep = _read_keep(handle, path, flag)
        order = _read_order(handle, keep, f"{flag} {path}")
    return Mask(keep, checked_info(info, keep.shape[-1], path, flag, "the mask"), order)


def _stored_shape(handle: Any, path: str | os.PathLike[str], flag: str) -> tuple[int, ...]:
    """(L, H, N, N) of the mask in an open file of ours, once memory is known to have room for it."""
    found = {name: handle.get_slice(name) for name in ("keep", _BITS) if name in handle.keys()}  # noqa: SIM118
    name, stored = next(iter(found.items()), ("", None))
    if stored is None or stored.get_dtype() != ("U8" if name == _BITS else "BOOL"):
        raise VitcodError(f"{flag} {path} lacks its boolean mask; make it again with vitcod gen-mask.")
    shape = tuple(stored.get_shape())
    if name == _BITS and len(shape) == 4 and shape[3] == -(-shape[2] // 8):
        shape = (*shape[:3], shape[2])
    check_shape(shape, path, flag, "a mask")
    check_mask_memory(shape, f"{flag} {path}")
    return shape


def _read_keep(handle: Any, path: str | os.PathLike[str], flag: str) -> np.ndarray:
    """The mask bool [L, H, N, N] of an open file of ours, from bytes or from bits."""
    shape = _stored_shape(handle, path, flag)
    if "keep" in handle.keys():  # noqa: SIM118
        return np.asarray(handle.get_tensor("keep"))
    stored, keep = handle.get_slice(_BITS), np.empty(shape, dtype=np.bool_)
    for number, block in enumerate(keep):
        block[...] = np.unpackbits(stored[number], axis=-1, count=shape[-1]).view(np.bool_)
    return keep


def check_mask_memory(shape: tuple[int, ...], subject: str) -> None:
    """Raise a VitcodError if this machine has no room for a mask bool ``shape`` in each of its processes.

    Args:
        subject: the option and the file, for the message.
    """
    need, left = math.prod(shape) * local_processes(), available_memory()
    if left is not None and need > left:
        raise VitcodError(
            f"{subject}: a mask of {list(shape)} takes {gigabytes(need)} of main memory, and {gigabytes(left)} "
            "are left; take a model of a smaller --img-size, or a machine with more."
        )


def mask_bytes(shape: tuple[int, ...]) -> int:
    """How long the file of a mask [L, H, N, N] is, without its header."""
    size = math.prod(shape)
    return size if size <= PACKED else math.prod(shape[:3]) * -(-shape[3] // 8)


def mask_in_checkpoint(path: str | os.PathLike[str], flag: str) -> Mask | None:
    """The mask [L, H, N, N] that a checkpoint of ours holds; None where it holds none.

    Its ``info`` is the checkpoint's, and ``num_prefix_tokens``, which a checkpoint says by its tensors alone.

    Raises:
        VitcodError: if the file can't be read, or its blocks' masks don't make one of a whole model.
    """
    with open_safetensors(path, flag=flag) as (handle, metadata):
        names = set(handle.keys())
        found = {int(match[1]): match[0] for name in names if (match := MASK_NAME.fullmatch(name))}
        whole = sorted(found) == list(range(len(found)))
        keep = _stacked(handle, [found[block] for block in sorted(found)] if whole else [], f"{flag} {path}")
        info = {"num_prefix_tokens": _prefix_tokens(handle, names), **metadata}
    if not found:
        return None
    if keep is None:
        raise VitcodError(f"{flag} {path} holds masks that don't fit each other; make the checkpoint again.")
    check_shape(keep.shape, path, flag, "a mask")
    return Mask(keep, checked_info(info, keep.shape[-1], path, flag, "the checkpoint"))


def _stacked(handle: Any, names: list[str], subject: str) -> np.ndarray | None:
    """The masks of these names as one; None where they are none, or not of one shape."""
    masks = [handle.get_slice(name) for name in names]
    if len({(*mask.get_shape(), mask.get_dtype()) for mask in masks}) != 1 or masks[0].get_dtype() != "BOOL":
        return None
    shape = (len(masks), *masks[0].get_shape())
    check_mask_memory(shape, subject)
    keep = np.empty(shape, dtype=np.bool_)
    for block, name in enumerate(names):
        keep[block] = handle.get_tensor(name)
    return keep


def _prefix_tokens(handle: Any, names: set[str]) -> int:
    """How many tokens come before the patches: one of a class token, any number of registers."""
    shapes = [handle.get_slice(name).get_shape() for name in _PREFIX if name in names]
    return sum(shape[1] if len(shape) == 3 else 0 for shape in shapes)


def _read_order(handle: Any, keep: np.ndarray, subject: str) -> TokenOrder | None:
    names = [name for name in _ORDER if name in handle.keys()]  # noqa: SIM118
    if not names:
        return None
    shapes = dict(zip(_ORDER, (keep.shape[:3], keep.shape[:2]), strict=True))
    for name in _ORDER:
        part = handle.get_slice(name) if name in names else None
        if part is None or part.get_dtype() != "I32" or tuple(part.get_shape()) != shapes[name]:
            raise VitcodError(
                f"{subject} has a token order without int32 {name} {list(shapes[name])}; make it again with "
                "vitcod polarize."
            )
    order = TokenOrder(*(handle.get_tensor(name) for name in _ORDER))
    if not _belongs(order, keep):
        raise VitcodError(
            f"{subject} has the token order of another mask, or none at all; make it again with vitcod polarize."
        )
    return order


def _belongs(order: TokenOrder, keep: np.ndarray) -> bool:
    """Whether each order names every token once, and its dense keys are kept by more queries than all others."""
    num_tokens = keep.shape[-1]
    if (np.sort(order.permutation, axis=-1) != np.arange(num_tokens, dtype=np.int32)).any():
        return False
    if order.global_tokens.min() < 0 or order.global_tokens.max() > num_tokens:
        return False
    counts = np.stack([np.count_nonzero(block, axis=-2) for block in keep])
    counts = np.take_along_axis(counts, order.permutation, axis=-1)
    dense = np.arange(num_tokens) < order.global_tokens[..., None]
    least = np.where(dense, counts, num_tokens + 1).min(axis=-1)
    most = np.where(dense, -1, counts).max(axis=-1)
    return bool((least > most).all())


def write_mask(path: str | os.PathLike[str], mask: Mask) -> None:
    """Write a mask atomically.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    keep, version = np.asarray(mask.keep, dtype=np.bool_), 1
    tensors = {"keep": keep}
    if keep.size > PACKED:
        tensors, version = {_BITS: _packed(keep)}, _BITS_VERSION
    if mask.order is not None:
        tensors |= {name: getattr(mask.order, name) for name in _ORDER}
    write_safetensors(path, tensors, MASK, mask.info, version=version)


def _packed(keep: np.ndarray) -> np.ndarray:
    """``numpy.packbits(keep, axis=-1)``, block by block: numpy would copy all of it first."""
    bits = np.empty((*keep.shape[:3], -(-keep.shape[3] // 8)), dtype=np.uint8)
    for block, kept in zip(bits, keep, strict=True):
        block[...] = np.packbits(kept, axis=-1)
    return bits


def published_mask(mask: Mask) -> np.ndarray:
    """The mask as the published code has it: bool [L, H, N, N], True = pruned."""
    return ~mask.keep
