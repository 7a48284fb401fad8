"""Images without labels: all of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from timm.data.readers.img_extensions import IMG_EXTENSIONS

from vitcod_cli.data.images import FileImages
from vitcod_cli.data.walk import walk
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter


def open_unlabelled(folder: str | os.PathLike[str], reporter: Reporter | None = None) -> FileImages:
    """The images in ``folder`` and below it, by path; in its ``train`` folder alone, where it has one.

    Hidden ones and those in hidden folders are left out, as :func:`~vitcod_cli.data.walk.walk` does.

    Raises:
        VitcodError: if it is no folder, can't be read, or there is no image.
    """
    root = Path(folder)
    if not os.path.isdir(root):
        raise VitcodError(f"{root} is not a folder; name one that holds images.")
    root = root / "train" if os.path.isdir(root / "train") else root
    found = walk(root)
    found.tell(reporter)
    paths = sorted(path for path, _ in found.samples())
    if not paths:
        raise VitcodError(f"There are no images in {root}; it should hold {', '.join(IMG_EXTENSIONS)} files.")
    return FileImages(paths, [0] * len(paths), 1)
