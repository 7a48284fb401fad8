"""The checksum that a safetensors file of ours carries of itself, so that flipped bytes in it are noticed.

It stands in our metadata under ``checksum``: the SHA-256 of the whole file as it is with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import IO

KEY = "checksum"
PLACEHOLDER = "0" * 64

_CHUNK = 1 << 20
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
# Our metadata is JSON inside a string of JSON, and the checksum is the third entry of it. Its name and digits may
# be what is damaged: an entry as long as it, in its place, is no other.
_PATTERN = re.compile(
    rb'\{\\"format\\": ?\\"[\w-]+\\", ?\\"version\\": ?\d+, ?\\"([^"\\]{8})\\": ?\\"([^"\\]{64})\\"'
)


def seal(path: Path) -> None:
    """Put the checksum of the file into it, in place of the placeholder that it was written with."""
    with open(path, "r+b") as file:
        at = _position(file)
        if at is None:
            raise ValueError(f"{path} has no place for a checksum")
        file.seek(at)
        file.write(_digest(path, at).encode())


def is_intact(path: str | os.PathLike[str]) -> bool:
    """Whether the file is as it was written, or carries no checksum (it is foreign, or of an older vitcod).

    Read once a process, unless the file changes.
    """
    status = os.stat(path)
    return _is_intact(os.path.realpath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _is_intact(path: str, *_: int) -> bool:
    with open(path, "rb") as file:
        at = _position(file)
        if at is None:
            return True
        file.seek(at)
        written = file.read(len(PLACEHOLDER)).decode("ascii", "replace")
    return written == _digest(Path(path), at)


def _position(file: IO[bytes]) -> int | None:
    """Where the checksum's digits begin, or None where there are none."""
    start = file.read(8)
    if len(start) < 8 or (size := struct.unpack("<Q", start)[0]) > _LARGEST_HEADER:
        return None
    match = _PATTERN.search(file.read(size))
    return None if match is None else 8 + match.start(2)


def _digest(path: Path, at: int) -> str:
    """The SHA-256 of the file with the placeholder at ``at``, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(at))
        digest.update(PLACEHOLDER.encode())
        file.seek(at + len(PLACEHOLDER))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
