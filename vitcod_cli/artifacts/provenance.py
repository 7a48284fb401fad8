"""What a file says of how it was made."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from vitcod_cli.artifacts.download import is_url
from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.version import __version__


def versions() -> dict[str, str]:
    """Of this package and of those that its results depend on."""
    import timm
    import torch

    return {"vitcod": __version__, "torch": str(torch.__version__), "timm": timm.__version__}


def provenance(made_by: str, source: str) -> dict[str, str]:
    """``made_by``, the file name of ``source`` and, where it is a local file, its checksum ``made_from``.

    Of an address, the path alone: what stands behind it (``?token=...``) may be a secret, and files are passed on.
    """
    path = urlsplit(source).path if is_url(source) else source
    origin = {"made_by": made_by, "source": path.rpartition("/")[2]}
    return {**origin, "made_from": sha256_of(source)} if Path(source).is_file() else origin
