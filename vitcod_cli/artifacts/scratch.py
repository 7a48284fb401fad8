"""Room for large arrays: in memory, or in a file that the system pages in and out. Imports numpy only."""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import gigabytes


@dataclass(frozen=True)
class Scratch:
    """A place for arrays that live as long as a command works on them.

    Attributes:
        folder: of the temporary files that hold them; None: they are in main memory.
    """

    folder: Path | None = None

    def zeros(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros, which takes memory or disk as it is written to, and gives all back when it goes.

        Not from malloc, which keeps what is freed for the next batch
        (:func:`~vitcod_cli.runtime.free_memory`).

        Raises:
            VitcodError: if the disk has no room.
        """
        if self.folder is not None:
            return self._mapped(shape, dtype)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        return np.frombuffer(mmap.mmap(-1, max(size, 1), **own), dtype, math.prod(shape)).reshape(shape)

    def _mapped(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        assert self.folder is not None
        try:
            return mapped_file(self.folder, shape, dtype)
        except OSError as error:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            raise VitcodError(
                f"A temporary file of {gigabytes(size)} is needed in {self.folder} and can't be made "
                f"({error.strerror}); free some space, or take a smaller --img-size."
            ) from error


def mapped_file(folder: Path, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros in a temporary file in ``folder``, memory-mapped.

    The file has no name: when the array goes, or the process is killed, it is gone.

    Raises:
        OSError: if the disk has no room for it, or the folder can't be written to.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype=dtype, mode="w+", shape=tuple(shape))


def _reserve(file: int, size: int) -> None:
    """Have the disk keep ``size`` bytes: writing to a mapped file of a full disk would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
