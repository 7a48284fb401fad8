"""Self-describing safetensors files. Imports neither torch nor numpy before it is asked to.

Every file of ours is a safetensors file whose metadata holds one JSON string under ``vitcod``:
``{"format": kind, "version": 1, ...}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vitcod_cli.artifacts.describe import METADATA_KEY, describe, in_words
from vitcod_cli.artifacts.files import atomic_path, checked_path, first_line
from vitcod_cli.errors import VitcodError

if TYPE_CHECKING:
    import numpy as np
    import torch

VERSION = 1


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | torch.Tensor],
    kind: str,
    info: Mapping[str, Any],
    before_replace: Callable[[], None] | None = None,
) -> None:
    """Write ``tensors`` (numpy arrays, torch tensors or both) atomically, with ``info`` as metadata.

    Torch tensors may be on any device, shared or not contiguous. ``before_replace``: see :func:`atomic_path`.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    metadata = {METADATA_KEY: json.dumps({"format": kind, "version": VERSION, **info})}
    with atomic_path(path, before_replace) as temporary:
        try:
            _save(temporary, tensors, metadata)
        except Exception as error:
            raise _as_os_error(error) or error from error


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
    path: str | os.PathLike[str], *, flag: str, framework: str = "numpy"
) -> Iterator[SafetensorsFile]:
    """Open a safetensors file for reading, ours or foreign.

    Raises:
        VitcodError: if it is no (whole) safetensors file, or a newer vitcod wrote it.
    """
    from safetensors import SafetensorError, safe_open

    checked_path(path, flag)
    try:
        with safe_open(path, framework=framework) as handle:
            yield SafetensorsFile(handle, _own_metadata(handle.metadata() or {}, path, flag))
    except (SafetensorError, OSError) as error:
        what = describe(path)
        if what is not None and what.container != "safetensors":
            raise VitcodError(f"{flag} {path} is not a safetensors file: it seems to be {what}.") from error
        raise VitcodError(
            f"{flag} {path} is not a whole safetensors file ({first_line(error)}); it may have been cut short: "
            "make it again."
        ) from error


def read_safetensors_info(path: str | os.PathLike[str], *, kind: str, flag: str) -> dict[str, Any]:
    """Our metadata of a file of ours, without ``format`` and ``version``.

    Raises:
        VitcodError: if the file is another one than ``kind``; says what it seems to be.
    """
    with open_safetensors(path, flag=flag) as file:
        return checked_kind(file.info, path, kind=kind, flag=flag)


def checked_kind(info: dict[str, Any], path: str | os.PathLike[str], *, kind: str, flag: str) -> dict[str, Any]:
    """``info`` without ``format`` and ``version``, once it is known to be of this ``kind``."""
    if info.get("format") != kind:
        raise VitcodError(f"{flag} {path} is not a vitcod {kind.replace('-', ' ')}: {in_words(path)}.")
    return {key: value for key, value in info.items() if key not in ("format", "version")}


def _own_metadata(metadata: Mapping[str, str], path: str | os.PathLike[str], flag: str) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    try:
        info = json.loads(metadata[METADATA_KEY])
        version = int(info["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise VitcodError(f"{flag} {path} has vitcod metadata that can't be read; make the file again.") from error
    if version > VERSION:
        raise VitcodError(
            f"{flag} {path} was written by a newer vitcod (format version {version}, this one reads up to "
            f"{VERSION}); upgrade with pip install --upgrade vitcod."
        )
    return cast("dict[str, Any]", info)
