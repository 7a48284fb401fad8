"""Rows of figures as a CSV or JSON file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path


def is_json(path: Path) -> bool:
    """Whether the name asks for JSON; any other for CSV."""
    return path.suffix.lower() == ".json"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write at least one row, whole or not at all; the columns are those of the first."""
    if is_json(path):
        text = json.dumps(rows, indent=2)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
