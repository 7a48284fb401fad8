"""The ImageNet layout: a folder with train/ and val/, in each a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from timm.data.readers.img_extensions import IMG_EXTENSIONS

from vitcod_cli.data.images import FileImages, ImageData
from vitcod_cli.data.labels import are_imagenet, label_map, mapped_labels
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.tar import open_tar
from vitcod_cli.data.unlabelled import open_split
from vitcod_cli.data.walk import Walk, folders_in, natural_order, walk
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

_SYNONYMS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "eval", "evaluation")}


def open_folder(
    settings: DataSettings,
    split: Split,
    num_classes: int | None,
    reporter: Reporter | None,
    training: list[str] | None = None,
) -> ImageData:
    """The images of one split, in timm's order, labelled by the rules of :mod:`vitcod_cli.data.labels`.

    Args:
        num_classes: outputs of the model, if known; with 0, images in any folders will do, without labels.
        training: names of the classes of the training split, where they are known; empty where it is open and has
            none.

    Raises:
        VitcodError: if the folder, the split or its images aren't there, or labels would depend on chance.
    """
    if settings.data_path is None:
        raise VitcodError(
            "--data-path is missing: give the folder that holds train/ and val/ (or --dataset digits for a try)."
        )
    root = Path(settings.data_path)
    if os.path.isfile(root) and root.suffix == ".tar":
        return open_tar(root, settings, num_classes, reporter)
    if num_classes == 0 and settings.class_map is None:
        if training is None and reporter is not None and find_split(root, settings, "val") is None:
            reporter.info(f"{root} has no validation split: every fifth of its images is kept to judge by.")
        return open_pictures(settings, split, reporter)
    folder = _split_folder(root, settings, split)
    found = walk(folder)
    found.tell(reporter)
    if not found.folders:
        raise VitcodError(
            f"There are no images in {folder}: it should hold a folder for each class, with "
            f"{', '.join(IMG_EXTENSIONS)} files in it."
        )
    _check_loose(found)
    names = found.classes
    if settings.class_map is not None:
        labels, count = mapped_labels(settings.class_map, names, str(folder), reporter)
    else:
        _check_filled(found)
        _check_nesting(found)
        classes = names
        if split == "val":
            training = training or _training_classes(root, names, num_classes, settings)
            classes = _ranked_classes(folder, names, training, num_classes)
        labels, count = label_map(classes, num_classes)
    kept = [(path, labels[name]) for path, name in found.samples() if name in labels]
    paths, targets = zip(*kept, strict=True)
    data = FileImages(paths, targets, count, max_bad_images=settings.max_bad_images)
    data.class_names = names
    return data


def open_pictures(settings: DataSettings, split: Split, reporter: Reporter | None) -> ImageData:
    """One split of ``--dataset images``: images in any folders, without labels.

    Raises:
        VitcodError: if the folder isn't there or holds no images.
    """
    if settings.data_path is None:
        raise VitcodError("--data-path is missing: give the folder that holds the images.")
    root = Path(settings.data_path)
    _check_root(root, "images")
    return open_split(settings, split, {part: find_split(root, settings, part) for part in SPLITS}, reporter)


def find_split(root: Path, settings: DataSettings, split: Split) -> Path | None:
    """The folder of a split, by its name or a synonym; None where there is none."""
    return next((root / name for name in _names_of(settings, split) if os.path.isdir(root / name)), None)


def _names_of(settings: DataSettings, split: Split) -> tuple[str, ...]:
    wanted = settings.train_split if split == "train" else settings.val_split
    synonyms = _SYNONYMS[split]
    return (wanted, *(name for name in synonyms if name != wanted)) if wanted in synonyms else (wanted,)


def _check_root(root: Path, holds: str) -> None:
    if not os.path.isdir(root):
        state = "is not a folder" if os.path.lexists(root) else "does not exist"
        raise VitcodError(f"--data-path {root} {state}; give the folder that holds {holds}.")


def _split_folder(root: Path, settings: DataSettings, split: Split) -> Path:
    _check_root(root, "train/ and val/")
    found = find_split(root, settings, split)
    if found is not None:
        return found
    tried = _names_of(settings, split)
    wanted = tried[0]
    subject = f"--data-path {root} has no folder {' or '.join(tried[:2])}/"
    if root.name in (*_SYNONYMS["train"], *_SYNONYMS["val"], settings.train_split, settings.val_split):
        raise VitcodError(f"{subject}; it seems to be a split itself: give the folder above it, {root.parent}.")
    flag = "--train-split" if split == "train" else "--val-split"
    if ".tar" in wanted:
        raise VitcodError(f"{subject}; for {flag} {wanted} in shards give --dataset wds/NAME, too.")
    there = _folders_in(root)
    only = f", only {', '.join(there[:5])}{' ...' if len(there) > 5 else ''}" if there else ""
    raise VitcodError(
        f"{subject}{only}; put the {split} images there, a folder for each class, or name it by {flag}."
    )


def _folders_in(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _check_loose(found: Walk) -> None:
    for folder in found.folders:
        if not folder.parts:
            loose = os.path.join(folder.path, min(folder.files, key=natural_order))
            raise VitcodError(
                f"{loose} lies beside the class folders of {found.root}; put it into the folder of its class."
            )


def _check_filled(found: Walk) -> None:
    if found.empty:
        more = f" and {len(found.empty) - 5} more" if len(found.empty) > 5 else ""
        listed = ", ".join(found.empty[:5]) + more
        what = f"class folder {listed} holds" if len(found.empty) == 1 else f"class folders {listed} hold"
        raise VitcodError(
            f"In {found.root}, the {what} no images; fill or remove them, or fix the labels by --class-map."
        )


def _check_nesting(found: Walk) -> None:
    """Refuse classes within a class, and folders of one name in all of them: the innermost folder is the class."""
    with_images = {folder.parts for folder in found.folders}
    for folder in found.folders:
        for depth in range(1, len(folder.parts)):
            if folder.parts[:depth] in with_images:
                raise VitcodError(
                    f"{os.path.join(found.root, *folder.parts[:depth])} holds images, and so does the folder "
                    f"{'/'.join(folder.parts[depth:])} in it, which would be a class of its own; move that out or "
                    "remove it, or fix the labels by --class-map."
                )
    names = {folder.name for folder in found.folders}
    if len(names) == 1 and len(found.tops) > 1 and all(len(folder.parts) > 1 for folder in found.folders):
        raise VitcodError(
            f"All images in {found.root} lie in folders called {names.pop()}, which would be their one class; "
            "put them directly into the folder of their class."
        )


def _training_classes(root: Path, names: list[str], num_classes: int | None, settings: DataSettings) -> list[str]:
    """The classes of the training split; ``names``, those of the validation split, where there is none."""
    try:
        train = _split_folder(root, settings, "train")
    except VitcodError:
        return names
    top = folders_in(train)
    if are_imagenet([*names, *top], num_classes):  # their labels are known: a million files need not be looked at
        return top or names
    found = walk(train)
    if not found.folders:
        return names
    _check_nesting(found)
    return sorted({*found.classes, *found.empty} - {""}, key=natural_order)


def _ranked_classes(folder: Path, names: list[str], training: list[str], num_classes: int | None) -> list[str]:
    """The classes whose ranks are the labels of validation images: the training split's.

    Raises:
        VitcodError: if the two splits would be labelled by different rules, or ``folder`` has a class that the
            training split has not.
    """
    if are_imagenet(names, num_classes):
        strange = [name for name in training if not are_imagenet([name], num_classes)]
        if not strange:
            return names
        raise VitcodError(
            f"The class folders of {folder} are ImageNet's, but not all of the training split "
            f"({', '.join(strange[:5])}), so the labels of both would not agree; remove the others, or fix the "
            "labels by --class-map."
        )
    foreign = sorted(set(names) - set(training), key=natural_order)
    if foreign:
        raise VitcodError(
            f"{folder} has {len(foreign)} class folders that the training split has not "
            f"({', '.join(foreign[:5])}); give both the same classes, or fix the labels by --class-map."
        )
    return training
