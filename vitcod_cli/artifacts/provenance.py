"""What a file says of how it was made."""

from __future__ import annotations

from pathlib import Path

from vitcod_cli.artifacts.files import sha256_of


def provenance(made_by: str, source: str) -> dict[str, str]:
    """``made_by``, the file name of ``source`` and, where it is a local file, its checksum ``made_from``."""
    origin = {"made_by": made_by, "source": source.rpartition("/")[2]}
    return {**origin, "made_from": sha256_of(source)} if Path(source).is_file() else origin
