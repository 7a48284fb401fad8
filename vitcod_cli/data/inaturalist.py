"""iNaturalist 2018 and 2019 as DeiT reads them: labels of any rank of the taxonomy, from the JSON files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from vitcod_cli.data.images import FileImages, ImageData
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.text_files import parse_json, read_text
from vitcod_cli.errors import VitcodError

_MAX_BYTES = 256 << 20
"""The largest real one, of 2018, has about half of that."""


def open_inaturalist(settings: DataSettings, split: Literal["train", "val"], year: int) -> ImageData:
    """The images that ``train<year>.json`` or ``val<year>.json`` lists.

    Labels count the values of ``--inat-category`` in the order in which the training annotations first
    name them.

    Raises:
        VitcodError: if a JSON file is missing, too large, or isn't of that form.
    """
    if settings.data_path is None:
        raise VitcodError(
            f"--data-path is missing: give the folder that holds train{year}.json and categories.json."
        )
    root, category = Path(settings.data_path), settings.inat_category
    listing = _read(root / f"{split}{year}.json")
    training = listing if split == "train" else _read(root / f"train{year}.json")
    categories = _read(root / "categories.json")
    try:
        names = [_text(entry[category]) for entry in categories]
        order = dict.fromkeys(names[_number(note["category_id"], names)] for note in training["annotations"])
        labels = {name: label for label, name in enumerate(order)}
        parts = [_path(image["file_name"]) for image in listing["images"]]
        targets = [labels[names[_number(int(part[2]), names)]] for part in parts]
        flat = [os.path.join(root, part[0], part[2], part[3]) for part in parts]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VitcodError(
            f"The JSON files in {root} are not those of iNaturalist {year} "
            f"({type(error).__name__}: {str(error)[:200]}); fetch train{year}.json, val{year}.json and "
            "categories.json anew."
        ) from error
    if not flat:
        raise VitcodError(f"{root / f'{split}{year}.json'} lists no images.")
    # DeiT expects <split>/<category id>/<file>; the archives have a folder for the kingdom in between.
    as_shipped = [os.path.join(root, *part) for part in parts]
    paths = as_shipped if os.path.exists(as_shipped[0]) and not os.path.exists(flat[0]) else flat
    return FileImages(paths, targets, len(labels), max_bad_images=settings.max_bad_images)


def _read(path: Path) -> Any:
    try:
        text = read_text(path, _MAX_BYTES)
    except ValueError as error:
        raise VitcodError(
            f"Can't read {path}: {error}; --data-path should be the folder with iNaturalist's JSON files."
        ) from error
    try:
        return parse_json(text)
    except ValueError as error:
        raise VitcodError(f"{path} is not valid JSON ({error}); fetch it anew.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:80]!r} is no text")
    return value


def _number(value: Any, names: list[str]) -> int:
    """A category's number; Python would take -1 for the last, and 1.5 for the first."""
    if type(value) is not int or not 0 <= value < len(names):
        raise ValueError(f"there is no category {str(value)[:80]}")
    return value


def _path(name: Any) -> list[str]:
    """The parts of a file's name: split, kingdom, category, file."""
    parts = _text(name).split("/")
    if len(parts) < 4 or not all(parts) or ".." in parts or "\0" in name:
        raise ValueError(f"{name[:80]!r} is no split/kingdom/category/file")
    os.fsencode(name)  # raises a ValueError for what can't be a file's name
    return parts
