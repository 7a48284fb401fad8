"""Which number a class has: by an explicit map, by ImageNet's list, or by rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from vitcod_cli.data.bad_images import warn
from vitcod_cli.data.text_files import parse_json, read_text
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

IMAGENET_CLASSES = 1000
MAX_CLASSES = 1_000_000


@lru_cache(maxsize=1)
def imagenet_labels() -> Mapping[str, int]:
    """ImageNet-1k: wnid (``n01440764``) to label, from timm's list."""
    from timm.data.imagenet_info import ImageNetInfo

    names = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]
    return {wnid: label for label, wnid in enumerate(names)}


def are_imagenet(classes: Iterable[str], num_classes: int | None) -> bool:
    """Whether class folders mean ImageNet-1k: all wnids, for a head of 1000 outputs or one yet to be chosen."""
    return num_classes in (None, IMAGENET_CLASSES) and all(name in imagenet_labels() for name in classes)


def label_map(classes: Iterable[str], num_classes: int | None) -> tuple[dict[str, int], int]:
    """Labels of class folders, and the number of classes.

    If all names are ImageNet wnids and the head has 1000 classes (or is yet to be chosen), they
    are ImageNet's labels, whichever subset is there; else the rank among ``classes``.

    Args:
        classes: all classes, in order.
        num_classes: outputs of the model, if known.
    """
    classes = list(classes)
    if are_imagenet(classes, num_classes):
        return {name: imagenet_labels()[name] for name in classes}, IMAGENET_CLASSES
    return {name: label for label, name in enumerate(classes)}, len(classes)


def read_class_map(path: str) -> dict[str, int]:
    """The class map of ``--class-map``: a text file with one class name a line, or a JSON object.

    Raises:
        VitcodError: if the file can't be read or says something else.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise VitcodError(
            f"Can't read --class-map {path}: {error}; it should hold one class name a line, "
            "or a JSON object of name: label."
        ) from error
    if path.lower().endswith(".json"):
        return _json_map(path, text)
    names = [line.strip() for line in text.rstrip().split("\n")]
    if not all(names):
        raise VitcodError(f"--class-map {path} has an empty line; it should hold one class name a line.")
    if len(names) > MAX_CLASSES:
        raise VitcodError(f"--class-map {path} has {len(names):,} lines; there may be {MAX_CLASSES:,} classes.")
    labels = {name: label for label, name in enumerate(names)}
    if len(labels) < len(names):
        twice = next(name for label, name in enumerate(names) if labels[name] != label)
        raise VitcodError(f"--class-map {path} names the class {twice} twice; give each class one line.")
    return labels


def _json_map(path: str, text: str) -> dict[str, int]:
    try:
        values = parse_json(text)
    except ValueError as error:
        raise VitcodError(f"--class-map {path} is not valid JSON ({error}).") from error
    if (
        not isinstance(values, dict)
        or not values
        or not all(type(label) is int and 0 <= label < MAX_CLASSES for label in values.values())
    ):
        raise VitcodError(
            f"--class-map {path} should be a JSON object from class names to labels, whole numbers from 0 to "
            f"{MAX_CLASSES - 1}."
        )
    return values


def mapped_labels(
    path: str, names: list[str], where: str, reporter: Reporter | None
) -> tuple[dict[str, int], int]:
    """Labels by the class map in ``path``, and the number of classes; classes it doesn't name are said.

    Args:
        names: the classes that there are, in ``where``.

    Raises:
        VitcodError: if the class map can't be read, or names none of them.
    """
    labels = read_class_map(path)
    unmapped = [name for name in names if name not in labels]
    if len(unmapped) == len(names):
        raise VitcodError(f"--class-map {path} names none of the class folders in {where}.")
    if unmapped:
        more = ", ..." if len(unmapped) > 5 else ""
        warn(
            f"{len(unmapped)} class folders are not in --class-map {path} and are left out: "
            f"{', '.join(unmapped[:5])}{more}.",
            reporter,
        )
    return labels, max(labels.values()) + 1
