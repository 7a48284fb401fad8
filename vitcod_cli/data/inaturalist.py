"""iNaturalist 2018 and 2019 as DeiT reads them: labels of any rank of the taxonomy, from the JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from vitcod_cli.data.images import FileImages, ImageData
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError


def open_inaturalist(settings: DataSettings, split: Literal["train", "val"], year: int) -> ImageData:
    """The images that ``train<year>.json`` or ``val<year>.json`` lists.

    Labels count the values of ``--inat-category`` in the order in which the training annotations first
    name them.

    Raises:
        VitcodError: if a JSON file is missing or isn't of that form.
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
        names = [str(entry[category]) for entry in categories]
        order = dict.fromkeys(names[int(note["category_id"])] for note in training["annotations"])
        labels = {name: label for label, name in enumerate(order)}
        parts = [str(image["file_name"]).split("/") for image in listing["images"]]
        targets = [labels[names[int(part[2])]] for part in parts]
        flat = [str(root / part[0] / part[2] / part[3]) for part in parts]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VitcodError(
            f"The JSON files in {root} are not those of iNaturalist {year} "
            f"({type(error).__name__}: {error}); fetch train{year}.json, val{year}.json and categories.json anew."
        ) from error
    if not flat:
        raise VitcodError(f"{root / f'{split}{year}.json'} lists no images.")
    # DeiT expects <split>/<category id>/<file>; the archives have a folder for the kingdom in between.
    as_shipped = [str(root.joinpath(*part)) for part in parts]
    paths = flat if Path(flat[0]).exists() or not Path(as_shipped[0]).exists() else as_shipped
    return FileImages(paths, targets, len(labels), max_bad_images=settings.max_bad_images)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VitcodError(
            f"Can't read {path}: {error.strerror}; --data-path should be the folder with iNaturalist's JSON files."
        ) from error
    except ValueError as error:
        raise VitcodError(f"{path} is not valid JSON ({error}); fetch it anew.") from error
