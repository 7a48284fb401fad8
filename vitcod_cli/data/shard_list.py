"""The shards of a wds/ data set: which files they are, and how many images they hold; checked at the start."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vitcod_cli.data.text_files import parse_json, read_text
from vitcod_cli.errors import VitcodError

MAX_SHARDS = 100_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")


@dataclass(frozen=True)
class Shards:
    """What a split means.

    Attributes:
        paths: absolute.
        num_samples: 0 if nobody says.
        label_key: of the JSON beside each image that holds the label; "" for a .cls file.
    """

    paths: list[str]
    num_samples: int
    label_key: str = ""


def find_shards(root: str, split: str, flag: str) -> Shards:
    """The shards that ``split`` names: ``name-{0000..0049}.tar|50000``, or a split of the folder's ``_info.json``.

    Raises:
        VitcodError: if the folder, a shard or the index isn't there, or can't be meant.
    """
    root = os.path.abspath(root)  # an absolute path is never taken for an address
    if not os.path.isdir(root):
        raise VitcodError(f"--data-path {root} is not a folder; give the one that holds the shards.")
    splits = _read_index(root)
    pattern, bar, count = split.partition("|")
    if "tar" in pattern or ".." in pattern:
        names = _expanded(pattern, flag)
        stated = _number(count, split, flag) if bar else None
        listed = next((known for known in splits.values() if set(names) <= set(known.paths)), None)
        label_key = listed.label_key if listed else ""
        if stated is None and listed is not None and isinstance(listed, _Listed):
            stated = sum(dict(zip(listed.paths, listed.lengths, strict=True))[name] for name in names)
        found = Shards(names, stated or 0, label_key)
    elif split in splits:
        found = splits[split]
    else:
        known = f", only {', '.join(list(splits)[:5])}" if splits else ""
        raise VitcodError(
            f"{flag} {split} is no split of the shards in {root}{known}; name the shards and their images, as in "
            f"{flag} 'name-{{0000..0049}}.tar|50000'."
        )
    paths = [os.path.join(root, name) for name in found.paths]
    _check_there(paths, root, flag)
    return Shards(paths, found.num_samples, found.label_key)


@dataclass(frozen=True)
class _Listed(Shards):
    """A split of the index: ``paths`` are names, ``lengths`` their images."""

    lengths: tuple[int, ...] = ()


def _expanded(pattern: str, flag: str) -> list[str]:
    """The names that a pattern with braces stands for, as webdataset expands it."""
    from braceexpand import braceexpand  # type: ignore[import-not-found, import-untyped, unused-ignore]

    too_many = VitcodError(f"{flag} {pattern} names more than {MAX_SHARDS:,} shards; write fewer.")
    if sum(abs(int(last) - int(first)) for first, last in _RANGE.findall(pattern)) > MAX_SHARDS:
        raise too_many
    try:
        parts = pattern.split("::")
        names = [name for part in parts for name in islice(braceexpand(part), MAX_SHARDS + 1)]
    except (ValueError, RecursionError) as error:
        raise VitcodError(f"{flag} {pattern} is no pattern of names ({error}); check its braces.") from error
    if len(names) > MAX_SHARDS:
        raise too_many
    return names


def _number(text: str, split: str, flag: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 13) or int(text) == 0:
        raise VitcodError(
            f"{flag} {split}: what stands behind the | should be the number of images, such as "
            f"{split.partition('|')[0]}|50000."
        )
    return int(text)


def _check_there(paths: list[str], root: str, flag: str) -> None:
    missing = [path for path in paths if not _is_file(path)]
    if missing or not paths:
        names = ", ".join(os.path.relpath(path, root) for path in missing[:3])
        raise VitcodError(
            f"{len(missing)} of the {len(paths)} shards that {flag} names are no files in {root} ({names}); name "
            f"the shards and their images, as in {flag} 'name-{{0000..0049}}.tar|50000'."
        )


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _read_index(root: str) -> dict[str, _Listed]:
    """The splits that ``_info.json`` or ``info.json`` lists; none without such a file."""
    path = next(
        (os.path.join(root, n) for n in ("_info.json", "info.json") if os.path.lexists(os.path.join(root, n))),
        None,
    )
    if path is None:
        return {}
    try:
        index = parse_json(read_text(path))
        return {str(name): _listed(entry) for name, entry in index.get("splits", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VitcodError(
            f"{path} is no index of shards ({type(error).__name__}: {str(error)[:200]}); mend or remove it, and "
            "name the shards and their images by --train-split and --val-split."
        ) from error


def _listed(entry: Any) -> _Listed:
    names, lengths, count = entry["filenames"], entry["shard_lengths"], entry["num_samples"]
    numbers = [count, *lengths]
    if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
        raise ValueError("a number of images is none")
    if len(names) != len(lengths) or len(names) > MAX_SHARDS or sum(lengths) != count:
        raise ValueError(f"{len(names)} shards with {sum(lengths)} images in all are not {count} images")
    for name in names:
        if not isinstance(name, str) or os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
            raise ValueError(f"{str(name)[:80]!r} is no name of a shard in this folder")
    return _Listed(list(names), count, str(entry.get("alt_label") or ""), tuple(lengths))
