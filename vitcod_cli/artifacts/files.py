"""Writing whole or not at all, and self-describing safetensors files. Imports neither torch nor numpy.

Every file of ours is a safetensors file whose metadata holds one JSON string under ``vitcod``:
``{"format": kind, "version": 1, ...}``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vitcod_cli.artifacts.describe import METADATA_KEY, describe, in_words
from vitcod_cli.errors import VitcodError

if TYPE_CHECKING:
    import numpy as np
    import torch

VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` when the block ends well.

    It lies in a hidden folder beside ``path``, which also holds whatever a library writes on its way.
    Missing parent folders are made. On any error, an interrupt included, the folder is removed and
    what was at ``path`` before is as it was. A reader sees the old file or the new one.

    Raises:
        VitcodError: if the disk is full or it can't be written to.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "not a regular file"
        raise VitcodError(f"Can't write {path}: it is {what}; name a file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            prefix=f".{target.name[:80]}.vitcod-", suffix=".tmp", dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            temporary = Path(folder) / "file"
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes its files private
            _sync(temporary)
            os.replace(temporary, target)
    except OSError as error:
        raise VitcodError(_cannot_write(path, error)) from error
    with suppress(OSError):  # some file systems can't sync a folder; the file itself is safe by now
        _sync(target.parent)


def free_path(path: str | os.PathLike[str], overwrite: bool, flag: str = "--output") -> Path:
    """``path`` as a Path, once it is known that a file may be written there.

    Raises:
        VitcodError: if there is a file already and it may not be overwritten.
    """
    if os.path.exists(path) and not overwrite:
        raise VitcodError(f"{path} exists; replace it with --overwrite, or name another file with {flag}.")
    return Path(path)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while writing have left in ``folder``."""
    for leftover in Path(folder).glob(".*.vitcod-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: str | os.PathLike[str], error: OSError) -> str:
    kept = "the file that was there is untouched" if os.path.exists(path) else "nothing was written"
    if error.errno in _FULL:
        return (
            f"The disk is full: {path} could not be written ({os.strerror(error.errno)}) and {kept}; free some "
            "space or choose another folder."
        )
    in_a_file = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "its folder is a file" if in_a_file else error.strerror or str(error)
    return f"Can't write {path} ({reason}), {kept}; choose a folder that you may write to."


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | torch.Tensor],
    kind: str,
    info: Mapping[str, Any],
) -> None:
    """Write ``tensors`` (numpy arrays, torch tensors or both) atomically, with ``info`` as metadata.

    Torch tensors may be on any device, shared or not contiguous.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    metadata = {METADATA_KEY: json.dumps({"format": kind, "version": VERSION, **info})}
    with atomic_path(path) as temporary:
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


def checked_path(path: str | os.PathLike[str], flag: str) -> Path:
    """``path`` as a Path once it is known to be a file that may be read.

    Raises:
        VitcodError: if it is missing, a folder, or may not be read.
    """
    try:
        if os.path.isdir(path):
            raise VitcodError(f"{flag} {path} is a folder; name a file in it.")
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its writer
            raise VitcodError(f"{flag} {path} is not a regular file; save it to one first.")
        with open(path, "rb"):
            return Path(path)
    except FileNotFoundError as error:
        raise VitcodError(f"{flag} {path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:
        raise VitcodError(f"{flag} {path} can't be read ({getattr(error, 'strerror', None) or error}).") from error


def first_line(error: BaseException) -> str:
    """What an error of another library says, fit for the middle of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read once a process, unless the file changes."""
    status = os.stat(path)
    return _sha256(os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, *_: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
