"""Self-describing safetensors files. Imports neither torch nor numpy before it is asked to.

Every file of ours is a safetensors file whose metadata holds one JSON string under ``vitcod``:
``{"format": kind, "version": 1, "checksum": ..., ...}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vitcod_cli.artifacts.checksum import KEY, PLACEHOLDER, is_intact, seal
from vitcod_cli.artifacts.describe import METADATA_KEY, describe, in_words
from vitcod_cli.artifacts.files import atomic_path, checked_path, first_line
from vitcod_cli.errors import DamagedFileError, VitcodError

if TYPE_CHECKING:
    import numpy as np
    import torch

VERSION = 2
"""The newest that is read. What needs nothing newer is written as 1, so that an older vitcod reads it, too."""


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | torch.Tensor],
    kind: str,
    info: Mapping[str, Any],
    before_replace: Callable[[], None] | None = None,
    *,
    version: int = 1,
) -> None:
    """Write ``tensors`` (numpy arrays, torch tensors or both) atomically, with ``info`` as metadata.

    Torch tensors may be on any device, shared or not contiguous. ``before_replace``: see :func:`atomic_path`.
    ``version``: the first one whose readers know what is in the file.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    ours = {"format": kind, "version": version, KEY: PLACEHOLDER}
    metadata = {METADATA_KEY: json.dumps({**ours, **{key: info[key] for key in info if key not in ours}})}
    with atomic_path(path, before_replace) as temporary:
        try:
            _save(temporary, tensors, metadata)
        except Exception as error:
            raise _as_os_error(error) or error from error
        seal(temporary)


def _save(path: Path, tensors: Mapping[str, np.ndarray | torch.Tensor], metadata: dict[str, str]) -> None:
    import numpy as np

    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata)
        return
    from safetensors.torch import save_file as save_torch_file

    save_torch_file(_plain_tensors(tensors), path, metadata)


def _plain_tensors(tensors: Mapping[str, np.ndarray | torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: on the CPU, contiguous, no two in one storage."""
    import torch

    plain: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


def _as_os_error(error: Exception) -> OSError | None:
    """The OSError that safetensors' Rust side tells of in its message alone, or None."""
    match = re.search(r"os error (\d+)", str(error))
    return None if match is None else OSError(int(match[1]), os.strerror(int(match[1])))


class SafetensorsFile(NamedTuple):
    """An open safetensors file: the handle of ``safe_open`` and our own metadata (empty if foreign)."""

    handle: Any
    info: dict[str, Any]


@contextmanager
def open_safetensors(
    path: str | os.PathLike[str], *, flag: str, framework: str = "numpy", verify: bool = True
) -> Iterator[SafetensorsFile]:
    """Open a safetensors file for reading, ours or foreign.

    Args:
        verify: read the whole file once and compare it with the checksum that it carries; for whoever reads
            tensors.

    Raises:
        VitcodError: if it is no (whole) safetensors file, is damaged, or a newer vitcod wrote it.
    """
    from safetensors import SafetensorError, safe_open

    checked_path(path, flag)
    try:
        with _any_name(path) as readable, safe_open(readable, framework=framework) as handle:
            info = _own_metadata(handle.metadata() or {}, path, flag)
            if info and verify and not is_intact(path):
                raise DamagedFileError(
                    f"{flag} {path} is damaged: its bytes are not those that vitcod wrote; make it or copy it "
                    "again."
                )
            yield SafetensorsFile(handle, info)
    except (SafetensorError, OSError) as error:
        what = describe(path)
        if what is not None and what.container != "safetensors":
            raise VitcodError(f"{flag} {path} is not a safetensors file: it seems to be {what}.") from error
        raise DamagedFileError(
            f"{flag} {path} is not a whole safetensors file ({first_line(error)}); it may have been cut short: "
            "make it again."
        ) from error


def map_tensor(path: str | os.PathLike[str], name: str, dtype: str) -> np.ndarray:
    """A tensor of a file that :func:`open_safetensors` has open, memory-mapped and read-only.

    The handle's own ``get_tensor`` would copy it.
    """
    import numpy as np

    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    offset, shape = 8 + size + entry["data_offsets"][0], tuple(entry["shape"])
    return np.asarray(np.memmap(path, dtype, "r", offset, shape))


@contextmanager
def _any_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """A path to the file that is UTF-8, as safetensors wants it, whatever bytes the file's own name has."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield name


def read_safetensors_info(path: str | os.PathLike[str], *, kind: str, flag: str) -> dict[str, Any]:
    """Our metadata of a file of ours, without ``format``, ``version`` and ``checksum``; no tensor is looked at.

    Raises:
        VitcodError: if the file is another one than ``kind``; says what it seems to be.
    """
    with open_safetensors(path, flag=flag, verify=False) as file:
        return checked_kind(file.info, path, kind=kind, flag=flag)


def checked_kind(info: dict[str, Any], path: str | os.PathLike[str], *, kind: str, flag: str) -> dict[str, Any]:
    """``info`` without what every file of ours says, once it is known to be of this ``kind``."""
    if info.get("format") != kind:
        raise VitcodError(f"{flag} {path} is not a vitcod {kind.replace('-', ' ')}: {in_words(path)}.")
    return {key: value for key, value in info.items() if key not in ("format", "version", KEY)}


def _own_metadata(metadata: Mapping[str, str], path: str | os.PathLike[str], flag: str) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    try:
        info = json.loads(metadata[METADATA_KEY])
        version = info["version"]
        if not isinstance(info, dict) or type(version) is not int or version < 1:
            raise ValueError("not ours")
    # RecursionError: nested deeper than Python's stack.
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DamagedFileError(
            f"{flag} {path} has vitcod metadata that can't be read; make the file again."
        ) from error
    if version > VERSION:
        raise VitcodError(
            f"{flag} {path} was written by a newer vitcod (format version {str(version)[:20]}, this one reads up "
            f"to {VERSION}); upgrade with pip install --upgrade vitcod."
        )
    return cast("dict[str, Any]", info)
