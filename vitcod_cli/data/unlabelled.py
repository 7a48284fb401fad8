"""Images without labels: all of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from timm.data.readers.img_extensions import IMG_EXTENSIONS

from vitcod_cli.data.images import FileImages
from vitcod_cli.errors import VitcodError


def open_unlabelled(folder: str | os.PathLike[str]) -> FileImages:
    """The images in ``folder`` and below it, by path; in its ``train`` folder alone, where it has one.

    Raises:
        VitcodError: if it is no folder, or there is no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VitcodError(f"{root} is not a folder; name one that holds images.")
    root = root / "train" if (root / "train").is_dir() else root
    paths = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(root)
        for name in names
        if os.path.splitext(name)[1].lower() in IMG_EXTENSIONS and not name.startswith(".")
    )
    if not paths:
        raise VitcodError(f"There are no images in {root}; it should hold {', '.join(IMG_EXTENSIONS)} files.")
    return FileImages(paths, [0] * len(paths), 1)
