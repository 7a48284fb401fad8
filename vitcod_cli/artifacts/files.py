"""Files of any kind: written whole or not at all, checked before they are read. No torch, no numpy."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from vitcod_cli.artifacts.temporary import SUFFIX, is_abandoned, prefix_for
from vitcod_cli.errors import DamagedFileError, VitcodError
from vitcod_cli.machine import free_space, gigabytes

PICTURES = (".png", ".pdf", ".svg")
ROWS = (".csv", ".json")
"""Endings of the files that a picture, and rows of figures, may be written to."""

_LONGEST = 300
"""Characters of another library's message that ours repeat."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike[str], before_replace: Callable[[], None] | None = None) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` when the block ends well.

    It lies in a hidden folder beside ``path``, which also holds whatever a library writes on its way.
    Missing parent folders are made. On any error, an interrupt included, both are removed again and
    what was at ``path`` before is as it was. A reader sees the old file or the new one; of two
    processes that write it at once, the one that ends last wins. What a killed process left beside
    ``path`` is removed.

    Args:
        before_replace: called when the new file is whole, just before it takes its place.

    Raises:
        VitcodError: if the disk is full or it can't be written to.
    """
    target = _checked_target(path, "The file")
    try:
        with _temporary_folder(target, stays=True) as folder:
            temporary = folder / "file"
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes its files private
            _sync(temporary)
            if before_replace is not None:
                before_replace()
            os.replace(temporary, target)
    except OSError as error:
        raise VitcodError(_cannot_write(path, error, "The file")) from error
    with suppress(OSError):  # some file systems can't sync a folder; the file itself is safe by now
        _sync(target.parent)


@contextmanager
def one_at_a_time(path: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process is in such a block for a file in the same folder, which is made if need be.

    For a moment's work: reading a file, and writing it anew with more in it. The system forgets the lock with the
    process. File systems that have no such locks, and Windows, go without.
    """
    folder, handle = Path(path).absolute().parent, None
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def free_path(
    path: str | os.PathLike[str],
    overwrite: bool,
    flag: str = "--output",
    inputs: Iterable[str | os.PathLike[str] | None] = (),
) -> Path:
    """``path`` as a Path, once it is known that a file can be written there; it is tried, and leaves no trace.

    Args:
        overwrite: whether a file that is there may be replaced.
        flag: the option that names ``path``.
        inputs: what the command reads, and must not replace; None and addresses are passed over.

    Raises:
        VitcodError: if it is no name for a file, something else is there, or it can't be written.
    """
    target = _checked_target(path, flag)
    for source in inputs:
        with suppress(OSError, ValueError):
            if source is not None and os.path.samefile(source, target):
                raise VitcodError(f"{flag} {path} is read by this command; name another file to write.")
    if os.path.exists(target) and not overwrite:
        raise VitcodError(f"{path} exists; replace it with --overwrite, or name another file with {flag}.")
    try:
        _try_to_write(target)
    except OSError as error:
        raise VitcodError(_cannot_write(path, error, flag)) from error
    return Path(path)


def check_space(folder: str | os.PathLike[str], size: int, flag: str, noun: str) -> None:
    """Raise a VitcodError if the disk of ``folder``, which need not be there yet, has no room for ``size`` bytes.

    Args:
        flag: the option that names the folder, or a file in it.
        noun: what takes them, as ``a mask``.
    """
    free = free_space(Path(folder))
    if free is not None and size > free:
        raise VitcodError(
            f"{flag}: the disk of {folder} has {gigabytes(free)} free, and {noun} takes {gigabytes(size)}; free "
            "some space, or choose another folder."
        )


def check_suffix(flag: str, path: str, known: tuple[str, ...]) -> None:
    """Raise a VitcodError unless the name of the file ends in one of ``known``."""
    if Path(path).suffix.lower() not in known:
        raise VitcodError(f"{flag} {path} should end in {', '.join(known[:-1])} or {known[-1]}.")


def free_folder(path: str | os.PathLike[str], flag: str = "--output-dir") -> Path:
    """``path`` as a Path, once it is known that files can be written in it; it is tried, and leaves no trace.

    Raises:
        VitcodError: if it is no name for a folder, something else is there, or it can't be made or written to.
    """
    _check_name(path, flag, "folder")
    folder = Path(os.path.realpath(path))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise VitcodError(f"{flag} {path} is a file; name a folder.")
    try:
        _try_to_write(folder / "file")
    except OSError as error:
        raise VitcodError(_cannot_write(path, error, flag)) from error
    return Path(path)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while writing have left in ``folder``, not what living ones write."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and is_abandoned(Path(entry.path)):
                shutil.rmtree(entry.path, ignore_errors=True)


def _check_name(path: str | os.PathLike[str], subject: str, noun: str) -> None:
    name = os.fspath(path)
    if not name:
        raise VitcodError(f"{subject} {name!r}: the name is empty; name a {noun}.")
    if "\0" in name:
        raise VitcodError(f"{subject} {name!r}: no name can have a null character; name another {noun}.")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise VitcodError(
            f"{subject} {name!a}: this system's encoding ({error.encoding}) has no such name; use plain letters, "
            "or set LC_ALL to a UTF-8 locale."
        ) from error


def _checked_target(path: str | os.PathLike[str], subject: str) -> Path:
    """The file that ``path`` leads to, which may be missing; raises a VitcodError if it can't be a file.

    Not by methods of Path: those raise for names that are too long.
    """
    _check_name(path, subject, "file")
    target = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    if os.path.basename(os.fspath(path)) in ("", os.curdir, os.pardir) or os.path.isdir(target):
        raise VitcodError(f"{subject} {path}: it is a folder; name a file in it.")
    if os.path.exists(target) and not os.path.isfile(target):
        raise VitcodError(f"{subject} {path}: it is not a regular file; name another file.")
    return target


@contextmanager
def _temporary_folder(target: Path, *, stays: bool) -> Iterator[Path]:
    """A hidden folder beside ``target``, for the time of the block.

    Args:
        stays: whether missing parents of ``target``, which are made, stay when the block ends well.
    """
    made = [path for path in target.parents if not os.path.exists(path)]
    try:
        with _make_temporary_folder(target) as folder:
            remove_leftovers(target.parent)
            yield Path(folder)
    except BaseException:
        stays = False
        raise
    finally:
        for path in [] if stays else made:
            with suppress(OSError):  # somebody else may write there by now
                path.rmdir()


def _make_temporary_folder(target: Path) -> TemporaryDirectory[str]:
    tries = 10
    while True:
        tries -= 1
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return TemporaryDirectory(
                prefix=prefix_for(target.name), suffix=SUFFIX, dir=target.parent, ignore_cleanup_errors=True
            )
        except FileNotFoundError:  # another process has made the parent for a try, too, and removed it
            if not tries:
                raise


def _try_to_write(target: Path) -> None:
    """Write a file of that name in a temporary folder beside ``target``; raise the OSError if that fails."""
    with (
        _temporary_folder(target, stays=False) as folder,
        open(folder / target.name, "wb", buffering=0) as file,
    ):
        file.write(bytes(4096))
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: str | os.PathLike[str], error: OSError, subject: str) -> str:
    kept = "what was there is untouched" if os.path.exists(path) else "nothing was written"
    if error.errno in _FULL:
        return (
            f"The disk is full: {path} could not be written ({os.strerror(error.errno)}) and {kept}; free some "
            "space or choose another folder."
        )
    in_a_file = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "its folder is a file" if in_a_file else error.strerror or str(error)
    way_on = (
        "choose a shorter name" if error.errno == errno.ENAMETOOLONG else "choose a folder that you may write to"
    )
    return f"{subject} {path} can't be written ({reason}) and {kept}; {way_on}."


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
