"""Tar archives in memory, member by member."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import Any

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", **fields: Any) -> Member:
    """A member with these fields of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def packed(members: Iterable[Member], mode: str = "w") -> bytes:
    """The archive of these members; ``mode`` as ``tarfile.open`` has it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
