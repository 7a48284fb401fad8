"""Which files in a folder are images: one rule for every split and every kind of data set.

Names that begin with a dot and the folders that systems leave behind are left out. Links are followed. A folder
is never walked inside itself, and once only under each name that leads to it, so that circles of links end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from timm.data.readers.img_extensions import IMG_EXTENSIONS

from vitcod_cli.data.bad_images import warn
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_JUNK = frozenset(
    {"__MACOSX", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db"}
)


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that a system has left behind."""
    return name.startswith(".") or name in _JUNK


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image, as timm does: .png, .jpg, .jpeg, small or large."""
    return os.path.splitext(name)[1].lower() in IMG_EXTENSIONS


def natural_key(text: str) -> list[int | str]:
    """timm's ``natural_key``: class9 before class10; superscript digits, which stop timm's, are letters here."""
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def natural_order(text: str) -> tuple[list[int | str], str]:
    """:func:`natural_key`, and the text itself where two are alike: Cat and cat, a1 and a01."""
    return natural_key(text), text


class ImageFolder(NamedTuple):
    """A folder that holds images itself.

    Attributes:
        path: as walked, below the root.
        parts: its names below the root; none for the root.
        files: names of its images.
    """

    path: str
    parts: tuple[str, ...]
    files: list[str]

    @property
    def name(self) -> str:
        """The class of its images, as timm names it: the innermost folder, "" for the root."""
        return self.parts[-1] if self.parts else ""


@dataclass
class Walk:
    """What lies in a folder.

    Attributes:
        folders: those that hold images, at any depth.
        tops: the folders directly in it, whether they hold images or not.
        left_out: paths of hidden and junk folders and hidden images, below the root.
        again: paths of links to folders that were walked already, below the root.
    """

    root: str
    folders: list[ImageFolder] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the folders that hold images, each once, in natural order."""
        return sorted({folder.name for folder in self.folders}, key=natural_order)

    @property
    def empty(self) -> list[str]:
        """Those of ``tops`` without an image in them or below, in natural order."""
        filled = {folder.parts[0] for folder in self.folders if folder.parts}
        return sorted(set(self.tops) - filled, key=natural_order)

    def samples(self) -> list[tuple[str, str]]:
        """(path, class name) of every image, in timm's order."""
        samples = [
            (os.path.join(folder.path, file), folder.name) for folder in self.folders for file in folder.files
        ]
        return sorted(samples, key=lambda sample: natural_order(sample[0]))

    def tell(self, reporter: Reporter | None) -> None:
        """Say in a line each what was left out, and which links were not followed."""
        if self.left_out:
            warn(f"Left out in {self.root}: {_some(self.left_out, 'hidden or system name')}.", reporter)
        if self.again:
            warn(f"Not followed in {self.root}: {_some(self.again, 'link')} to folders already walked.", reporter)


def _some(names: list[str], what: str) -> str:
    """``4 links (a, b, c, ...)``."""
    listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({listed})"


class _Pending(NamedTuple):
    path: str
    parts: tuple[str, ...]
    above: frozenset[tuple[int, int]]


def walk(root: str | os.PathLike[str]) -> Walk:
    """Look through ``root`` and everything below it.

    Raises:
        VitcodError: if a folder can't be read: going on without it would shift labels.
    """
    found = Walk(os.fspath(root))
    seen: set[tuple[int, int, str]] = set()
    pending = [_Pending(found.root, (), frozenset())]
    while pending:  # level by level, and by name: a class folder goes before a link to it further down
        below: list[_Pending] = []
        for folder in pending:
            with _readable(folder.path):
                identity = _identity(folder.path)
                name = folder.parts[-1] if folder.parts else ""
                if identity in folder.above or (*identity, name) in seen:
                    found.again.append("/".join(folder.parts))
                    continue
                seen.add((*identity, name))
                if len(folder.parts) == 1:
                    found.tops.append(name)
                below += _look(folder, found, folder.above | {identity})
        pending = below
    return found


def folders_in(root: str | os.PathLike[str]) -> list[str]:
    """Names of the folders directly in ``root`` that :func:`walk` would look into."""
    with _readable(root), os.scandir(root) as entries:
        return [entry.name for entry in entries if not is_left_out(entry.name) and _is_folder(entry)]


@contextmanager
def _readable(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VitcodError(
            f"The folder {os.fspath(folder)} can't be read ({error.strerror or error}); make it readable or "
            "remove it, for without it labels could change."
        ) from error


def _identity(path: str) -> tuple[int, int]:
    """What tells a folder from all others, by whichever links it was reached."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _look(folder: _Pending, found: Walk, above: frozenset[tuple[int, int]]) -> list[_Pending]:
    """Note the images of one folder; returns the folders in it, by name."""
    files, below = [], []
    with os.scandir(folder.path) as entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            if is_left_out(entry.name):
                if is_folder or is_image(entry.name):
                    found.left_out.append("/".join((*folder.parts, entry.name)))
            elif is_folder:
                below.append(_Pending(entry.path, (*folder.parts, entry.name), above))
            elif is_image(entry.name):
                files.append(entry.name)
    if files:
        found.folders.append(ImageFolder(folder.path, folder.parts, files))
    return sorted(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look: named when it is to be opened
        return False
