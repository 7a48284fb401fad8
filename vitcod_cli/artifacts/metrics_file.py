"""``metrics.jsonl``: one JSON object a line, appended; only its end is read to do so."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vitcod_cli.artifacts.files import atomic_path

_BLOCK = 1 << 16


def line_of(metrics: dict[str, Any]) -> bytes:
    """One line of the file; what is not finite becomes null, for JSON knows neither NaN nor infinity."""
    plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in metrics.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def append(path: Path, line: bytes) -> None:
    """Append ``line``, in place of half a line that a killed process has left."""
    with open(path, "a+b") as file:
        file.truncate(_end_of_lines(file))
        file.write(line)


def keep_epochs(path: Path, epochs: int) -> None:
    """Keep the lines of the first ``epochs`` epochs, and those that are of no epoch; half a line goes."""
    if not path.exists() or all(kept for _, kept in _lines(path, epochs)):
        return
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.writelines(line for line, kept in _lines(path, epochs) if kept)


def _lines(path: Path, epochs: int) -> Iterator[tuple[bytes, bool]]:
    with open(path, "rb") as file:
        for line in file:
            yield line, line.endswith(b"\n") and _is_kept(line, epochs)


def _is_kept(line: bytes, epochs: int) -> bool:
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not isinstance(metrics, dict) or not isinstance(metrics.get("epoch"), int) or metrics["epoch"] <= epochs


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - _BLOCK)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0
