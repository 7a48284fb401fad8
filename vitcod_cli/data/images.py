"""The map-style data sets: pictures by index, each with a label and a name for messages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_logger = logging.getLogger(__name__)


class BadImages:
    """The unreadable pictures that this process has met, and how many it puts up with."""

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def found(self, picture: str, reason: str, *, replaced: bool, reporter: Reporter | None = None) -> None:
        """Warn of one picture, the first time that it is met.

        Raises:
            VitcodError: when there are more than ``limit``.
        """
        if picture in self.reasons:
            return
        self.reasons[picture] = reason
        if len(self.reasons) > self.limit:
            listed = "; ".join(f"{name} ({why})" for name, why in list(self.reasons.items())[:5])
            more = f"; and {len(self.reasons) - 5} more" if len(self.reasons) > 5 else ""
            raise VitcodError(
                f"More than --max-bad-images {self.limit} pictures can't be read: {listed}{more}. "
                "Mend or remove them, or raise --max-bad-images."
            )
        fate = "another takes its place" if replaced else "it is left out"
        # Each process reads other pictures, and the reporters of all but the first are silent.
        warn(f"Can't read {picture} ({reason}); {fate}.", reporter if distributed.is_main() else None)


def warn(text: str, reporter: Reporter | None) -> None:
    """Warn through ``reporter``, or through logging where there is none."""
    if reporter is None:
        _logger.warning(text)
    else:
        reporter.warn(text)


class ImageData(Dataset[tuple[Any, int]]):
    """Pictures by index.

    Attributes:
        num_classes: labels are below this number.
        transform: applied by ``[]``, as in timm's and torchvision's data sets; the loaders bring their own.
        in_memory: reading is so cheap that worker processes would cost more than they bring.
        bad_images: the unreadable pictures that the loaders of this process have met.
    """

    in_memory = False

    def __init__(self, num_classes: int, max_bad_images: int = 10) -> None:
        self.num_classes = num_classes
        self.transform: Callable[[Image.Image], Any] | None = None
        self.bad_images = BadImages(max_bad_images)

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Picture and label; the picture may be in any mode and not yet decoded."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """A name for messages: the path of a file, else ``image 17``."""
        return f"image {index}"

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.load(index)
        image.load()
        return (image if self.transform is None else self.transform(image)), target


class FileImages(ImageData):
    """Pictures in files of their own.

    Paths are kept in one array of bytes rather than a million strings: worker processes share it,
    where reference counts would make each of them copy it page by page.
    """

    def __init__(self, paths: Sequence[str], targets: Sequence[int], num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.targets = np.asarray(targets, dtype=np.int64)
        encoded = [path.encode("utf-8", "surrogateescape") for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def describe(self, index: int) -> str:
        """The path."""
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Open the file; nothing is decoded yet."""
        return Image.open(self.describe(index)), int(self.targets[index])


class SourceImages(ImageData):
    """Pictures of a torchvision or timm data set."""

    def __init__(self, source: Any, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.source = source
        source.transform = None

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Ask the source; timm's readers are asked directly, for timm itself skips bad pictures in silence."""
        reader = getattr(self.source, "reader", None)
        image, target, *_ = self.source[index] if reader is None else reader[index]
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        return image, -1 if target is None else int(target)

    def describe(self, index: int) -> str:
        """The file's name where the source knows it."""
        try:
            return str(self.source.filename(index))
        except (AttributeError, AssertionError, NotImplementedError, KeyError, IndexError):
            return super().describe(index)
