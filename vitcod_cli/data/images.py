"""The map-style data sets: images by index, each with a label and a name for messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from vitcod_cli.data.bad_images import BadImages
from vitcod_cli.data.batches import BatchReader
from vitcod_cli.data.decode import UnreadableImageError, decode, load_image, reason_of, without_ghostscript
from vitcod_cli.data.reading import Reader, Reading


class ImageData(Dataset[tuple[Any, int]]):
    """Images by index.

    Attributes:
        num_classes: labels are below this number.
        transform: applied by ``[]``, as in timm's and torchvision's data sets; the loaders bring their own.
        labelled: whether the labels mean anything.
        in_memory: reading is so cheap that worker processes would cost more than they bring.
        class_names: of class folders, in the order of their ranks; None where there are no such folders.
        bad_images: the unreadable images that the loaders of this process have met.
    """

    labelled = True
    in_memory = False
    class_names: list[str] | None = None

    def __init__(self, num_classes: int, max_bad_images: int = 10) -> None:
        self.num_classes = num_classes
        self.transform: Callable[[Image.Image], Any] | None = None
        self.bad_images = BadImages(max_bad_images)

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image and label; the image may be in any mode and not yet decoded.

        Raises:
            OSError: if the image can't be read; all else is taken for a defect.
        """
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """A name for messages: the path of a file, else ``image 17``."""
        return f"image {index}"

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.load(index)
        image.load()
        return (image if self.transform is None else self.transform(image)), target

    def reader(self, reading: Reading) -> Reader:
        """Reads this process's share of the images."""
        return BatchReader(self, reading)

    def evenly_spaced(self, count: int) -> ImageData:
        """``count`` images spread over the whole: of a data set in class order, some of each class."""
        return self if len(self) <= count else Subset(self, count)

    def check_countable(self, flag: str) -> None:
        """Raise a VitcodError if nobody knows how many images there are: an epoch needs to have an end."""


class Subset(ImageData):
    """``count`` images of ``data``, evenly spaced."""

    def __init__(self, data: ImageData, count: int) -> None:
        super().__init__(data.num_classes)
        self.data = data
        self.labelled = data.labelled
        self.in_memory = data.in_memory
        self.bad_images = data.bad_images
        self._indices = np.arange(count) * len(data) // count

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """As ``data`` has it."""
        return self.data.load(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """As ``data`` has it."""
        return self.data.describe(int(self._indices[index]))


class FileImages(ImageData):
    """Images in files of their own.

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
        """Read the file, by the rules of :mod:`vitcod_cli.data.decode`."""
        return load_image(self.describe(index)), int(self.targets[index])


class SourceImages(ImageData):
    """Images of a torchvision or timm data set."""

    def __init__(self, source: Any, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.source = source
        source.transform = None
        if hasattr(source, "loader"):  # torchvision's sets of files
            source.loader = load_image

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Ask the source; timm's readers are asked directly, for timm itself skips bad images in silence."""
        reader = getattr(self.source, "reader", None)
        try:
            with without_ghostscript():
                image, target, *_ = self.source[index] if reader is None else reader[index]
            if not isinstance(image, Image.Image):
                with image:
                    image = decode(image)
            return image, -1 if target is None else int(target)
        except UnreadableImageError:
            raise
        except Exception as error:  # every library has its own
            raise UnreadableImageError(reason_of(error)) from error

    def describe(self, index: int) -> str:
        """The file's name where the source knows it."""
        try:
            return str(self.source.filename(index))
        except (AttributeError, AssertionError, NotImplementedError, KeyError, IndexError):
            return super().describe(index)
