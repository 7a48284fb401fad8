"""A .tar of class folders, read where it lies; its classes may also be archives within it."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from vitcod_cli.data.archives import DamagedArchiveError, members
from vitcod_cli.data.decode import MAX_FILE_BYTES, UnreadableImageError, decode, open_regular
from vitcod_cli.data.images import FileImages, ImageData
from vitcod_cli.data.labels import label_map, mapped_labels
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.walk import Walk, is_image, is_left_out, natural_key, natural_order
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter


class _Member(NamedTuple):
    name: str
    label: str
    offset: int
    size: int


class TarImages(FileImages):
    """Images in an archive, read by their offsets in it."""

    def __init__(
        self, archive: Path, found: list[_Member], labels: dict[str, int], count: int, limit: int
    ) -> None:
        names, targets = [member.name for member in found], [labels[member.label] for member in found]
        super().__init__(names, targets, count, max_bad_images=limit)
        self.archive = archive
        self._places = np.array([(member.offset, member.size) for member in found], dtype=np.int64)

    def describe(self, index: int) -> str:
        """The archive, and the name in it."""
        return f"{self.archive}: {super().describe(index)}"

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Read that part of the archive."""
        offset, size = self._places[index].tolist()
        if size > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
        with open_regular(self.archive) as file:
            file.seek(offset)
            return decode(io.BytesIO(file.read(size))), int(self.targets[index])


def open_tar(
    archive: Path, settings: DataSettings, num_classes: int | None, reporter: Reporter | None
) -> ImageData:
    """The images of an archive, the same for both splits, in the order of timm's ``ReaderImageInTar``.

    Raises:
        VitcodError: if it can't be read to its end, or holds no images in class folders.
    """
    try:
        with open_regular(archive) as file:
            found = _find(file, str(archive), reporter)
    except (OSError, DamagedArchiveError) as error:
        raise VitcodError(
            f"--data-path {archive} can't be read ({getattr(error, 'strerror', None) or error}); "
            "fetch or write it anew."
        ) from error
    if not found:
        raise VitcodError(f"--data-path {archive} holds no images; it should hold a folder for each class.")
    loose = next((member.name for member in found if not member.label), None)
    if loose is not None:
        raise VitcodError(
            f"{loose} in {archive} lies beside the class folders; put it into the folder of its class."
        )
    names = sorted({member.label for member in found}, key=natural_order)
    if settings.class_map is not None:
        labels, count = mapped_labels(settings.class_map, names, str(archive), reporter)
        found = [member for member in found if member.label in labels]
    else:
        labels, count = label_map(names, num_classes)
    return TarImages(archive, found, labels, count, settings.max_bad_images)


def _find(file: BinaryIO, name: str, reporter: Reporter | None) -> list[_Member]:
    nested: list[_Member] = []
    own: list[_Member] = []
    passed_over = Walk(name)
    for archive, info in members(file):
        if os.path.splitext(info.name)[1].lower() == ".tar" and _parts(info.name) is not None:
            inner = archive.extractfile(info)
            assert inner is not None
            stem = os.path.splitext(os.path.basename(info.name))[0]
            for _, member in members(inner):  # type: ignore[arg-type]
                _note(member, info.offset_data, stem, nested, passed_over)
        else:
            _note(info, 0, "", own, passed_over)
    passed_over.tell(reporter)
    return sorted(nested + own, key=lambda member: natural_key(member.name))


def _note(info: tarfile.TarInfo, base: int, outer: str, found: list[_Member], passed_over: Walk) -> None:
    if not is_image(info.name):
        return
    parts = _parts(info.name)
    if parts is None or info.issparse():  # the bytes of a sparse file don't lie in a row
        passed_over.left_out.append(info.name)
        return
    label = parts[-2] if len(parts) > 1 else outer
    found.append(_Member(info.name, label, base + info.offset_data, info.size))


def _parts(name: str) -> list[str] | None:
    """The folders and the name of a member; None for hidden ones, junk, and those that lead out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if not parts or any(is_left_out(part) for part in parts) else parts
