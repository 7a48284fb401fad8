"""Checkpoints from the web: downloaded once into torch hub's folder, checked where the name carries a hash."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from vitcod_cli.artifacts.files import atomic_path, first_line, sha256_of
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")  # as torch hub, timm and DeiT name their files
_CHUNK = 1 << 18
_LONGEST_NAME = 150


def is_url(source: str) -> bool:
    """True for anything of the form scheme://..."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source) is not None


def download(url: str, flag: str, reporter: Reporter) -> Path:
    """The local copy of ``url``; downloaded when there is none, or a damaged one.

    Processes of one machine that ask for the same address wait for the first.

    Raises:
        VitcodError: if it isn't https, can't be reached, or its hash is another than its name says.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise VitcodError(f"{flag} {url} is no address ({first_line(error)}); check it.") from error
    if parts.scheme.lower() != "https":
        raise VitcodError(f"{flag} {url} is not an https:// address; use one, or download the file yourself.")
    name = re.sub(r"[^\w.+-]", "_", PurePosixPath(unquote(parts.path)).name, flags=re.ASCII)[-_LONGEST_NAME:]
    if not name:
        raise VitcodError(f"{flag} {url} names no file; give the address of a checkpoint.")
    match = _HASH.search(name)
    wanted = match[1] if match else ""
    # A name without a hash gets the address's: many addresses end in ".../model.safetensors".
    target = _cache_folder() / (name if wanted else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}")
    with _locked(target):
        if not target.is_file() or (wanted and not sha256_of(target).startswith(wanted)):
            _fetch(url, target, wanted, flag, reporter)
    return target


def _cache_folder() -> Path:
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints"


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    from filelock import FileLock  # torch depends on it

    lock = FileLock(f"{target}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        message = f"Can't download into {target.parent} ({error.strerror}); point TORCH_HOME to another folder."
        raise VitcodError(message) from error
    try:
        yield
    finally:
        lock.release()


def _fetch(url: str, target: Path, wanted: str, flag: str, reporter: Reporter) -> None:
    """Download into ``target`` and check that the SHA-256 starts with ``wanted``."""
    digest = hashlib.sha256()
    with atomic_path(target) as temporary:
        try:
            # Read errors and write errors are both OSErrors: only the reading is in this try.
            answer = _ask(url)
            length, received = answer.length, 0
            _check_space(target, length, flag, url)
            with (
                open(temporary, "wb") as file,
                reporter.progress(f"download {target.name}", length, "bytes") as bar,
            ):
                while chunk := _read(answer):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    bar.advance(len(chunk))
            if length is not None and received != length:
                raise _NetworkError(f"only {received} of {length} bytes came")
        except _NetworkError as error:
            raise VitcodError(
                f"{flag} {url} could not be downloaded ({error}); check the address and the network, or give a "
                "file."
            ) from error
        if not digest.hexdigest().startswith(wanted):
            raise VitcodError(
                f"{flag} {url} is not what its name says: its SHA-256 starts with {digest.hexdigest()[:8]}, not "
                f"{wanted}; try again, or check where the address comes from."
            )


def _check_space(target: Path, length: int | None, flag: str, url: str) -> None:
    free = shutil.disk_usage(target.parent).free
    if length is not None and length > free:
        raise VitcodError(
            f"{flag} {url} has {length / 1e9:.3g} GB and {target.parent} has {free / 1e9:.3g} GB left; free some "
            "space, or point TORCH_HOME to another folder."
        )


class _NetworkError(Exception):
    """The other side failed, not our disk."""


def _ask(url: str) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "vitcod"})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _NetworkError(str(getattr(error, "reason", None) or error)) from error
    if not answer.geturl().lower().startswith("https://"):
        raise _NetworkError(f"it leads to {answer.geturl()}, which is not https://")
    return answer


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error
    return chunk
