"""``.pth`` files, read and written: PyTorch's pickles, of which only plain data is ever unpickled."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

from vitcod_cli.artifacts.files import atomic_path, first_line
from vitcod_cli.artifacts.pickle_check import Budget, PickleCheck, RefusedObjectError
from vitcod_cli.errors import VitcodError

_ZIP = b"PK\x03\x04"
_END_OF_ZIP = b"PK\x05\x06"
_LARGEST_PICKLE = 1 << 24
"""Bytes of what describes the tensors; a hundred for each, and the options of the training."""

_OLD_PICKLES = 5
"""Of a file of PyTorch before 1.6, then its tensors: magic number, version, system, content, order of storages."""


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

    It is looked through first, so that a file takes no more memory than its size says.

    Raises:
        VitcodError: if it is no PyTorch file, is cut short, asks for more than it has, or holds other Python
            objects.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols and storage classes
            _look_through(path)
            # An open file: torch takes a path that ends in .safetensors for such a file.
            with open(path, "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except RefusedObjectError as error:
        raise VitcodError(_refusal(flag, source, str(error))) from error
    # What a damaged file raises depends on where it is damaged.
    except Exception as error:
        refused = _refused(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is not None:
            raise VitcodError(_refusal(flag, source, refused)) from error
        # torch's own message advises to switch the check off
        reason = "" if "weights_only" in str(error) else f" ({first_line(error)})"
        raise VitcodError(f"{flag} {source} is not a whole PyTorch checkpoint{reason}; get it again.") from error


def _refusal(flag: str, source: str, name: str) -> str:
    return (
        f"{flag} {source} holds a Python object ({name[:100]}) that could run code when loaded, so it is refused; "
        "save its weights alone (torch.save of model.state_dict())."
    )


def _refused(message: str) -> str | None:
    """The name of the object that torch refused to unpickle."""
    match = re.search(r"GLOBAL (\S+)", message) or re.search(r"Unsupported (?:class|global|type):? (\S+)", message)
    return match[1].strip("`'\"") if match else None


def _look_through(path: Path) -> None:
    """Raise an error unless the pickles of the file are plain data, of no more bytes than the file has."""
    import torch

    budget = Budget(path.stat().st_size)
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            _check_zip(path)
            file.seek(0)
            content = torch._C.PyTorchFileReader(file).get_record("data.pkl")  # the very one that torch.load reads
            PickleCheck(io.BytesIO(content), budget).load()
            return
        if _is_tar(path):
            raise pickle.UnpicklingError("it is a tar archive, of a PyTorch before 0.2")
        file.seek(0)
        for _ in range(_OLD_PICKLES):
            PickleCheck(_Limited(file), budget).load()


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, mode="r:"):  # as torch does
            return True
    except tarfile.TarError:
        return False


class _Limited(io.RawIOBase):
    """The next bytes of a file, and no more than a pickle may have."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._left = file, _LARGEST_PICKLE

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise pickle.UnpicklingError("what describes its tensors is too large")
        self._left -= size
        return self._file.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        line = self._file.readline(1 << 10)
        self._left -= len(line)
        return line


def _check_zip(path: Path) -> None:
    """Raise an error unless the archive is as torch writes it: stored, each entry once, no entry in another."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        file.seek(-22, os.SEEK_END)
        entries = archive.infolist()
        # Other readers than Python's find the directory in other ways, where there is something behind it.
        if file.read(4) != _END_OF_ZIP or archive.comment:
            raise zipfile.BadZipFile("there is something behind the archive")
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size for entry in entries
    ):
        raise zipfile.BadZipFile("it is compressed, as PyTorch writes none; unpack it and save it with torch.save")
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise zipfile.BadZipFile("two of its entries have one name")
    if sum(entry.file_size for entry in entries) > size:
        raise zipfile.BadZipFile("its entries are larger than the file")
    largest = max((entry.file_size for entry in entries if entry.filename.lower().endswith("data.pkl")), default=0)
    if largest > _LARGEST_PICKLE:
        raise zipfile.BadZipFile("what describes its tensors is too large")
    if any(entry.CRC for entry in entries):  # torch can leave them out, and looks at none
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")


def write_pickled(path: str | os.PathLike[str], content: Any) -> None:
    """``torch.save`` that replaces the file whole or not at all."""
    import torch

    # Through memory: torch hides a full disk behind an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
