"""Tar archives of unknown origin: headers are read within bounds, and half an archive is never taken for a whole.

Nothing is ever extracted to the disk; links, devices and pipes in an archive are passed over.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_EXTENDED_BYTES = 1 << 20
_MAX_SKIPPED_BYTES = 4 << 30
"""The largest member of a compressed archive: to pass over it, it has to be unpacked."""


class DamagedArchiveError(Exception):
    """The archive can't be read to its end, and why."""


class _Header(tarfile.TarInfo):
    """A header that is damaged raises; tarfile itself takes one in the middle for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Header:  # type: ignore[override]
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise
            raise DamagedArchiveError(str(error) if buf else "it has no end") from error
        if header.size < 0 or (header.type in _EXTENDED and header.size > _MAX_EXTENDED_BYTES):
            raise DamagedArchiveError(f"a header claims {header.size:,} bytes")
        return header


def members(file: BinaryIO, *, compressed: bool = False) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular files of an archive, in their order, with the archive that :meth:`extractfile` belongs to.

    Args:
        file: the archive; a compressed one can only be read from front to back.

    Raises:
        DamagedArchiveError: if it is no archive or ends early.
    """
    try:
        with _opened(file, compressed) as archive:
            if archive.firstmember is None:  # type: ignore[attr-defined]
                return  # Python 3.10 would look for a second one before the archive's start
            end = -1
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember all, a kilobyte each
                if archive.offset <= end or member.size < 0:
                    raise DamagedArchiveError(f"{member.name} claims {member.size:,} bytes")
                end = archive.offset
                if archive.fileobj is not file and member.size > _MAX_SKIPPED_BYTES:
                    raise DamagedArchiveError(f"{member.name} claims {member.size:,} bytes")
                if member.isreg():
                    yield archive, member
    except (DamagedArchiveError, GeneratorExit):
        raise
    except Exception as error:  # tarfile's own, those of zlib, bz2 and lzma, and whatever a broken number leads to
        raise DamagedArchiveError(str(error) or type(error).__name__) from error


def _opened(file: BinaryIO, compressed: bool) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)
    except (tarfile.TarError, DamagedArchiveError):
        if not compressed or not _is_compressed(file):
            raise
        return tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header)


def _is_compressed(file: BinaryIO) -> bool:
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00\x00\x80"))
