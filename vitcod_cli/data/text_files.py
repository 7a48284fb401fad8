"""Small text and JSON files of unknown origin, read within bounds."""

from __future__ import annotations

import json
import os
from typing import Any

from vitcod_cli.data.decode import open_regular

MAX_TEXT_BYTES = 16 << 20


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a regular UTF-8 file, its line ends ``\\n``.

    Raises:
        ValueError: if it can't be read, is too large, or no text; the message says why in a few words.
    """
    try:
        with open_regular(path, limit) as file:
            content = file.read(limit + 1)  # it may grow while it is read
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not a text file in UTF-8") from error
    if "\0" in text:
        raise ValueError("it is not a text file, for it has zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: if it is not valid, nested too deeply, or names a key twice; the message says why.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it names {twice[:80]!r} twice")
    return values
