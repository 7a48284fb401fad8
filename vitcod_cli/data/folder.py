"""The ImageNet layout: a folder with train/ and val/, in each a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from timm.data.dataset_factory import create_dataset
from timm.data.readers.img_extensions import IMG_EXTENSIONS
from timm.utils.misc import natural_key

from vitcod_cli.data.bad_images import warn
from vitcod_cli.data.images import FileImages, ImageData, SourceImages
from vitcod_cli.data.labels import are_imagenet, label_map, read_class_map
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

Split = Literal["train", "val"]

_SYNONYMS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "eval", "evaluation")}


def open_folder(
    settings: DataSettings, split: Split, num_classes: int | None, reporter: Reporter | None
) -> ImageData:
    """The images of one split, found by timm, labelled by the rules of :mod:`vitcod_cli.data.labels`.

    Raises:
        VitcodError: if the folder, the split or its images aren't there, or a class has no image.
    """
    if settings.data_path is None:
        raise VitcodError(
            "--data-path is missing: give the folder that holds train/ and val/ (or --dataset digits for a try)."
        )
    root = Path(settings.data_path)
    if root.is_file() and root.suffix == ".tar":
        return _open_tar(root, settings, num_classes)
    folder = _split_folder(root, settings, split)
    reader = _find_images(folder)
    names: list[str] = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
    _check_classes(folder, names, reader.samples, settings)
    if settings.class_map is not None:
        labels = read_class_map(settings.class_map)
        count = max(labels.values()) + 1
        _warn_unmapped(names, labels, settings, reporter)
    else:
        ranked = split == "val" and not are_imagenet(names, num_classes)
        classes = _classes_of_training(root, folder, names, settings) if ranked else names
        labels, count = label_map(classes, num_classes)
    by_rank = [labels.get(name, -1) for name in names]
    kept = [(path, by_rank[label]) for path, label in reader.samples if by_rank[label] >= 0]
    if not kept:
        raise VitcodError(f"--class-map {settings.class_map} names none of the class folders in {folder}.")
    paths, targets = zip(*kept, strict=True)
    return FileImages(paths, targets, count, max_bad_images=settings.max_bad_images)


def _open_tar(root: Path, settings: DataSettings, num_classes: int | None) -> ImageData:
    """A .tar of class folders, through timm's reader; it is the same for both splits."""
    class_map = read_class_map(settings.class_map) if settings.class_map else None
    source = create_dataset("", root=str(root), class_map=class_map)  # type: ignore[arg-type]
    names = source.reader.class_name_to_idx
    labels, count = (names, max(names.values()) + 1) if class_map else label_map(names, num_classes)
    by_rank = {label: labels[name] for name, label in names.items()}
    source.reader.targets = [by_rank[int(label)] for label in source.reader.targets]
    return SourceImages(source, count, max_bad_images=settings.max_bad_images)


def _split_folder(root: Path, settings: DataSettings, split: Split) -> Path:
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise VitcodError(f"--data-path {root} {state}; give the folder that holds train/ and val/.")
    wanted = settings.train_split if split == "train" else settings.val_split
    synonyms = _SYNONYMS[split]
    tried = (wanted, *(name for name in synonyms if name != wanted)) if wanted in synonyms else (wanted,)
    for name in tried:
        if (root / name).is_dir():
            return root / name
    subject = f"--data-path {root} has no folder {' or '.join(tried[:2])}/"
    if root.name in (*_SYNONYMS["train"], *_SYNONYMS["val"], settings.train_split, settings.val_split):
        raise VitcodError(f"{subject}; it seems to be a split itself: give the folder above it, {root.parent}.")
    flag = "--train-split" if split == "train" else "--val-split"
    raise VitcodError(f"{subject}; put the {split} images there, a folder for each class, or name it by {flag}.")


def _find_images(folder: Path) -> Any:
    """timm's walk of the folder: ``.samples`` (path, label) and ``.class_to_idx``."""
    try:
        return create_dataset("", root=str(folder), search_split=False).reader
    except RuntimeError as error:
        raise VitcodError(
            f"There are no images in {folder}: it should hold a folder for each class, with "
            f"{', '.join(IMG_EXTENSIONS)} files in it."
        ) from error


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return sorted(names, key=natural_key)


def _check_classes(folder: Path, names: list[str], samples: list[tuple[str, int]], settings: DataSettings) -> None:
    """Refuse loose images and empty class folders: both would silently shift labels."""
    if "" in names:
        loose = next(path for path, label in samples if names[label] == "")
        raise VitcodError(
            f"{loose} lies beside the class folders of {folder}; put it into the folder of its class."
        )
    if settings.class_map is not None:
        return
    # timm names a class by the innermost folder, so only folders that no image is directly in need a second look.
    known = set(names)
    empty = [name for name in _subfolders(folder) if name not in known and not _has_image(folder / name)]
    if empty:
        listed = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        what = f"class folder {listed} holds" if len(empty) == 1 else f"class folders {listed} hold"
        raise VitcodError(
            f"In {folder}, the {what} no images; fill or remove them, or fix the labels by --class-map."
        )


def _has_image(folder: Path) -> bool:
    return any(
        os.path.splitext(file)[1].lower() in IMG_EXTENSIONS
        for _, _, files in os.walk(folder, followlinks=True)
        for file in files
    )


def _classes_of_training(root: Path, folder: Path, names: list[str], settings: DataSettings) -> list[str]:
    """The classes of the training split, which are ranked for both splits; ``names`` where there is none.

    Raises:
        VitcodError: if ``folder`` has a class that the training split has not.
    """
    try:
        train = _split_folder(root, settings, "train")
    except VitcodError:
        return names
    training = _subfolders(train)
    nested = set(_subfolders(folder)) != set(names)
    if nested or not training:
        return names
    foreign = sorted(set(names) - set(training), key=natural_key)
    if foreign:
        raise VitcodError(
            f"{folder} has {len(foreign)} class folders that {train} has not ({', '.join(foreign[:5])}); "
            "give both the same classes, or fix the labels by --class-map."
        )
    return training


def _warn_unmapped(
    names: list[str], labels: dict[str, int], settings: DataSettings, reporter: Reporter | None
) -> None:
    unmapped = [name for name in names if name not in labels]
    if unmapped:
        more = ", ..." if len(unmapped) > 5 else ""
        warn(
            f"{len(unmapped)} class folders are not in --class-map {settings.class_map} and are left out: "
            f"{', '.join(unmapped[:5])}{more}.",
            reporter,
        )
