"""``metrics.jsonl``: one JSON object a line, appended; only its end is read to do so. Its epochs as a table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.rows_file import write_rows

_BLOCK = 1 << 16
_LARGEST = 64 << 20


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


def write_table(path: Path, table: Path) -> None:
    """Write the epochs of the file at ``path`` as CSV to ``table``: a row each, and a column for each figure.

    Without any, or of a file that is too large to be one of ours, there is no table.
    """
    if not path.exists() or path.stat().st_size > _LARGEST:
        return
    rows = [row for row in _objects(path) if isinstance(row.get("epoch"), int)]
    if rows:
        columns = dict.fromkeys(name for row in rows for name in row)
        write_rows(table, [{name: row.get(name) for name in columns} for row in rows])


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                metrics = json.loads(line)
                if isinstance(metrics, dict):
                    yield metrics


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
