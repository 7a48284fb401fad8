"""Image files of unknown origin: what is opened, what Pillow may be asked to decode, and how much memory it takes.

An image has at most 256 MiB as a file and 89 million pixels. To decode the largest takes 0.7 GB as JPEG or PNG and
1.4 GB as WebP, in each process that reads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import EpsImagePlugin, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What files called .jpg and .png are, more or less; no others, for Pillow would run Ghostscript for an EPS."""

MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 89_478_485
"""Pillow's own number, from which on it warns of a decompression bomb: 1 GiB / 4 / 3."""


class UnreadableImageError(OSError):
    """An image that can't be read or used, and why, in a few words."""


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """Open a file for reading, once it is known to be one: a pipe would wait for its writer, a device never end.

    Raises:
        OSError: if it can't be read, is no regular file, or has more than ``limit`` bytes.
    """
    _check_regular(os.stat(path), limit)
    # What lies there may be another by now: not even then is waited for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor), limit)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(
            "a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        )
    if limit is not None and status.st_size > limit:
        raise UnreadableImageError(f"{status.st_size:,} bytes, more than {limit:,}")


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """The decoded image in a file, in whichever mode it has.

    Raises:
        OSError: if there is none, or it is not fit to be read (:class:`UnreadableImageError`).
    """
    with open_regular(path, MAX_FILE_BYTES) as file:
        return decode(file)


def decode(file: BinaryIO) -> Image.Image:
    """The decoded image, in whichever mode it has.

    Raises:
        UnreadableImageError: if it is none, broken, or too large.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(*image.size)
            image.load()
            return image
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for broken files
        raise UnreadableImageError(reason_of(error)) from error


def check_pixels(width: int, height: int, what: str = "") -> None:
    """Refuse what would take too much memory.

    Raises:
        UnreadableImageError: for more than ``MAX_PIXELS`` pixels.
    """
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"{width:,} x {height:,} pixels{what}, more than {MAX_PIXELS:,}")


def reason_of(error: BaseException) -> str:
    """Why, in a few words without the path, which is told beside them."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of {', '.join(FORMATS[:-1])} or {FORMATS[-1]} format"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


@contextmanager
def without_ghostscript() -> Iterator[None]:
    """Keep Pillow from running Ghostscript, where a library opens images by itself."""
    before = getattr(EpsImagePlugin, "gs_binary", None)
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before
