"""Files of any kind: written whole or not at all, checked before they are read. No torch, no numpy."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from vitcod_cli.errors import DamagedFileError, VitcodError

_LONGEST = 300
"""Characters of another library's message that ours repeat."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike[str], before_replace: Callable[[], None] | None = None) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` when the block ends well.

    It lies in a hidden folder beside ``path``, which also holds whatever a library writes on its way.
    Missing parent folders are made. On any error, an interrupt included, the folder is removed and
    what was at ``path`` before is as it was. A reader sees the old file or the new one.

    Args:
        before_replace: called when the new file is whole, just before it takes its place.

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
            if before_replace is not None:
                before_replace()
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


def checked_path(path: str | os.PathLike[str], flag: str) -> Path:
    """``path`` as a Path once it is known to be a file with something in it that may be read.

    What is no regular file is refused unopened: a pipe would wait for its writer, a device never end. So is an
    empty file, as those in /proc seem to be, which may do the same.

    Raises:
        VitcodError: if it is missing, a folder, empty, or may not be read.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise VitcodError(f"{flag} {path} is a folder; name a file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise VitcodError(f"{flag} {path} is not a regular file; save it to one first.")
        if not status.st_size:
            raise DamagedFileError(f"{flag} {path} is empty, it holds no byte; make it or copy it again.")
        with open(path, "rb"):
            return Path(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VitcodError(f"{flag} {path} does not exist; check the path.") from error
    except (OSError, ValueError) as error:
        shown = os.fspath(path)[:200]
        raise VitcodError(
            f"{flag} {shown} can't be read ({getattr(error, 'strerror', None) or error})."
        ) from error


def first_line(error: BaseException) -> str:
    """What an error of another library says, fit for the middle of a sentence."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(". ") if lines else ""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    return text or type(error).__name__


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
