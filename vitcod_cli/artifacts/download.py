"""Checkpoints from the web: downloaded once into torch hub's folder, checked where the name carries a hash."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from vitcod_cli.artifacts.files import atomic_path, sha256_of
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")  # as torch hub, timm and DeiT name their files
_CHUNK = 1 << 18


def is_url(source: str) -> bool:
    """True for anything of the form scheme://..."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source) is not None


def download(url: str, flag: str, reporter: Reporter) -> Path:
    """The local copy of ``url``; downloads it if there is none (or a damaged one).

    Raises:
        VitcodError: if it isn't https, can't be reached, or its hash is another than its name says.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() != "https":
        raise VitcodError(
            f"{flag} {url} is not an https:// address, and weights over {parts.scheme}:// can be tampered with "
            "on the way; use https:// or download the file yourself."
        )
    name = PurePosixPath(unquote(parts.path)).name
    if not name:
        raise VitcodError(f"{flag} {url} names no file; give the address of a checkpoint.")
    import torch.hub

    # Different addresses may end in the same name (".../resolve/main/model.safetensors").
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = _HASH.search(name)
    wanted = found[1] if found else ""
    target = folder / (name if wanted else f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}")
    if target.is_file() and (not wanted or sha256_of(target).startswith(wanted)):
        return target
    request = urllib.request.Request(url, headers={"User-Agent": "vitcod"})
    with atomic_path(target) as temporary:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                digest = _copy(answer, temporary, name, reporter)
        except (urllib.error.URLError, TimeoutError, ConnectionError, EOFError) as error:
            reason = getattr(error, "reason", None) or error
            raise VitcodError(
                f"{flag} {url} could not be downloaded ({reason}); check the address and the network, or give a "
                "file."
            ) from error
        if not digest.startswith(wanted):
            raise VitcodError(
                f"{flag} {url} arrived damaged: its SHA-256 starts with {digest[:8]}, its name says {wanted}; "
                "try again, or check where the address comes from."
            )
    return target


def _copy(answer: IO[bytes], path: Path, name: str, reporter: Reporter) -> str:
    length = getattr(answer, "length", None)
    digest, received = hashlib.sha256(), 0
    with open(path, "wb") as file, reporter.progress(f"download {name}", length, unit="bytes") as progress:
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            progress.advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if length is not None and received != length:
        raise EOFError(f"only {received} of {length} bytes came")
    return digest.hexdigest()
