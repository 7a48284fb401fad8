"""Images without labels: all of a folder, or one split of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from timm.data.readers.img_extensions import IMG_EXTENSIONS

from vitcod_cli.data.images import FileImages
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.walk import walk
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

NO_LABEL = -1

KIND = "images"
"""``--dataset images``."""

_EVERY = 5
"""Where there is one folder for both splits, every so many images are the validation split."""


class UnlabelledImages(FileImages):
    """Images that all have the label -1, which nothing may count with."""

    labelled = False

    def __init__(self, paths: list[str], max_bad_images: int = 10) -> None:
        super().__init__(paths, [NO_LABEL] * len(paths), 1, max_bad_images=max_bad_images)


def open_unlabelled(folder: str | os.PathLike[str], reporter: Reporter | None = None) -> UnlabelledImages:
    """The images in ``folder`` and below it, by path; in its ``train`` folder alone, where it has one.

    Hidden ones and those in hidden folders are left out, as :func:`~vitcod_cli.data.walk.walk` does.

    Raises:
        VitcodError: if it is no folder, can't be read, or there is no image.
    """
    return open_all([folder], "", reporter)


def open_all(
    folders: Sequence[str | os.PathLike[str]], flag: str, reporter: Reporter | None, max_bad_images: int = 10
) -> UnlabelledImages:
    """The images of several folders together, each as :func:`open_unlabelled` has them; each file once.

    Raises:
        VitcodError: if one is no folder, can't be read, or holds no image; ``flag`` is the option that named it.
    """
    paths: dict[str, None] = {}
    for folder in folders:
        root = Path(folder)
        if not os.path.isdir(root):
            raise VitcodError(f"{flag} {root} is not a folder; name one that holds images.".lstrip())
        paths |= dict.fromkeys(_paths(root / "train" if os.path.isdir(root / "train") else root, reporter))
    return UnlabelledImages(list(paths), max_bad_images)


def open_split(
    settings: DataSettings,
    split: Literal["train", "val"],
    folders: dict[str, Path | None],
    reporter: Reporter | None,
) -> UnlabelledImages:
    """One split of ``--dataset images``: its folder, or where there is one folder for both, its share of that.

    Of one folder every fifth image is the validation split, by path, and the others are the training split.

    Args:
        folders: the folder of each split below ``--data-path``, None where there is none.

    Raises:
        VitcodError: if there are no images for it.
    """
    assert settings.data_path is not None
    own, other = folders[split], folders["val" if split == "train" else "train"]
    if own is not None and (other is not None or split == "val"):
        return UnlabelledImages(_paths(own, reporter), settings.max_bad_images)
    if own is None and split == "train" and other is not None:
        raise VitcodError(
            f"--data-path {settings.data_path} has no folder {settings.train_split}/; put the training images "
            "there."
        )
    shared = own or other or Path(settings.data_path)
    paths = _paths(shared, reporter)
    if len(paths) < 2:
        raise VitcodError(f"{shared} holds one image, which can't be of both splits; add others.")
    held = set(paths[_EVERY - 1 :: _EVERY] or paths[-1:])
    return UnlabelledImages(
        [path for path in paths if (path in held) == (split == "val")], settings.max_bad_images
    )


def _paths(folder: Path, reporter: Reporter | None) -> list[str]:
    found = walk(folder)
    found.tell(reporter)
    paths = sorted(path for path, _ in found.samples())
    if not paths:
        raise VitcodError(f"There are no images in {folder}; it should hold {', '.join(IMG_EXTENSIONS)} files.")
    return paths
