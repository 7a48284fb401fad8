"""Images in tar shards, in the order of timm's wds/ reader; nothing is unpickled, or skipped in silence."""

from __future__ import annotations

import io
import math
import random
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from timm.data.dataset import IterableImageDataset
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import get_worker_info

from vitcod_cli.data.archives import DamagedArchiveError, members
from vitcod_cli.data.decode import MAX_FILE_BYTES, UnreadableImageError, decode, open_regular
from vitcod_cli.data.shard_list import Shards
from vitcod_cli.data.text_files import parse_json
from vitcod_cli.data.walk import is_left_out
from vitcod_cli.errors import VitcodError

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LIMITS = {**dict.fromkeys(_IMAGES, MAX_FILE_BYTES), "cls": 1 << 10, "json": 1 << 20}
_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)")
"""webdataset's: all after the first dot of the last part is the kind."""
_SHARD_SHUFFLE, _SHARD_INITIAL = 500, 100


@dataclass
class RawImage:
    """An image of a shard, undecoded.

    Attributes:
        name: shard and key, for messages.
        reason: why it can't be used, or "".
    """

    name: str
    content: bytes = b""
    reason: str = ""

    def decoded(self) -> Image.Image:
        """The image.

        Raises:
            UnreadableImageError: if there is none.
        """
        if self.reason:
            raise UnreadableImageError(self.reason)
        return decode(io.BytesIO(self.content))


@dataclass
class _Group:
    """The members of one sample."""

    name: str
    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""


class ShardReader:
    """What timm's ``IterableImageDataset`` reads from: images and labels of the shards of this worker.

    In training each worker gives as many readable images as any other, going round if its shards hold fewer. Else
    images are undecoded (:class:`RawImage`): some are for other processes.
    """

    def __init__(self, shards: Shards, *, training: bool, batch_size: int, seed: int) -> None:
        self.shards = shards
        self.num_samples = shards.num_samples
        self.class_to_idx: dict[str, int] = {}
        self.dist_rank, self.dist_num_replicas = 0, 1
        self.ds = None
        self._training, self._batch_size, self._seed = training, batch_size, seed
        self._num_workers = 1
        self._epoch = SharedCount()

    def set_epoch(self, count: int) -> None:
        """Another epoch has another order of shards."""
        self._epoch.value = count

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        """How many workers there will be."""
        if num_workers is not None:
            self._num_workers = max(1, num_workers)

    def __len__(self) -> int:
        return self._samples_per_worker() * self._num_workers

    def _samples_per_worker(self) -> int:
        share = math.ceil(self.num_samples / (self.dist_num_replicas * self._num_workers))
        return math.ceil(share / self._batch_size) * self._batch_size if self._training else share

    def __iter__(self) -> Iterator[tuple[Image.Image | RawImage, int]]:
        worker = get_worker_info()
        number, seed = (0, self._seed) if worker is None else (worker.id, worker.seed)
        place = self.dist_rank * self._num_workers + number
        if self._training:
            yield from self._endless(place, random.Random(seed))
        else:
            yield from self._labelled(self._groups(place, self.shards.paths))

    def _endless(self, place: int, generator: random.Random) -> Iterator[tuple[Image.Image | RawImage, int]]:
        """As many readable samples as each worker gives, going round, and the unreadable ones on the way."""
        from timm.data.readers.reader_wds import SAMPLE_INITIAL_SIZE, SAMPLE_SHUFFLE_SIZE
        from webdataset.filters import _shuffle  # type: ignore[import-not-found, import-untyped, unused-ignore]

        left, before = self._samples_per_worker(), -1
        while left and left != before:  # without a shard, or a readable image in them, it would go round for ever
            before = left
            order = random.Random(self._seed + self._epoch.value)
            paths = list(_shuffle(iter(self.shards.paths), _SHARD_SHUFFLE, _SHARD_INITIAL, order))
            groups = _shuffle(self._groups(place, paths), SAMPLE_SHUFFLE_SIZE, SAMPLE_INITIAL_SIZE, generator)
            for raw, label in self._labelled(groups):
                try:
                    yield raw.decoded(), label
                except UnreadableImageError as error:
                    yield RawImage(raw.name, reason=str(error)), -1
                    continue
                left -= 1
                if not left:
                    return

    def _groups(self, place: int, paths: list[str]) -> Iterator[_Group]:
        for path in paths[place :: self.dist_num_replicas * self._num_workers]:
            yield from _read_shard(path)

    def _labelled(self, groups: Iterable[_Group]) -> Iterator[tuple[RawImage, int]]:
        for group in groups:
            content = next((group.parts[kind] for kind in _IMAGES if kind in group.parts), None)
            label, reason = self._label(group.parts)
            if content is None:
                reason = f"no image of the kinds {', '.join(_IMAGES)}"
            reason = group.reason or reason
            if content is None or reason:
                yield RawImage(group.name, reason=reason), -1
            elif label >= 0:  # timm's indices write -1 for an image that a split leaves out
                yield RawImage(group.name, content), label

    def _label(self, parts: dict[str, bytes]) -> tuple[int, str]:
        """The label, or why there is none."""
        key = self.shards.label_key
        kind = "json" if key else "cls"
        if kind not in parts:
            return -1, f"no label beside it: .{kind} is missing"
        try:
            label: Any = parse_json(parts["json"].decode()).get(key) if key else int(parts["cls"])
        except (ValueError, AttributeError):
            label = None
        if type(label) is not int or not (-1 if key else 0) <= label < 2**31:
            return -1, f"its label in .{kind} is no whole number from 0"
        return label, ""


def _read_shard(path: str) -> Iterator[_Group]:
    """The samples of a shard: members that follow one another and are called alike up to the first dot.

    Raises:
        VitcodError: if the shard can't be read to its end.
    """
    group: _Group | None = None
    try:
        with open_regular(path) as file:
            for archive, member in members(file, compressed=True):
                match = _NAME.fullmatch(member.name)
                if match is None or any(is_left_out(part) for part in member.name.split("/") if part != "."):
                    continue
                key, kind = match[1], match[2].lower()
                if group is not None and group.key != key:
                    yield from _whole(group)
                    group = None
                group = group or _Group(f"{path}: {key}", key)
                if kind in _LIMITS:
                    _add(group, kind, archive, member)
        if group is not None:
            yield from _whole(group)
    except (OSError, DamagedArchiveError) as error:
        raise VitcodError(
            f"The shard {path} can't be read to its end ({getattr(error, 'strerror', None) or error}); fetch it "
            "anew, or leave it out of the split."
        ) from error


def _whole(group: _Group) -> Iterator[_Group]:
    """The group, if it is a sample at all: not, say, a README."""
    if group.reason or "cls" in group.parts or any(kind in group.parts for kind in _IMAGES):
        yield group


def _add(group: _Group, kind: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if member.size > _LIMITS[kind]:
        group.reason = f".{kind} has {member.size:,} bytes, more than {_LIMITS[kind]:,}"
    elif kind in group.parts:
        group.reason = f"two members .{kind}"
    else:
        content = archive.extractfile(member)
        assert content is not None
        group.parts[kind] = content.read()


def open_shards(shards: Shards, training: bool, batch_size: int, seed: int) -> IterableImageDataset:
    """timm's data set of them."""
    reader = ShardReader(shards, training=training, batch_size=batch_size, seed=seed)
    return IterableImageDataset(None, reader=reader)  # type: ignore[no-untyped-call]
