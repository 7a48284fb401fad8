"""Room for large arrays: zeros in memory or in a file without a name, or a sentence."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from vitcod_cli.artifacts.scratch import Scratch
from vitcod_cli.errors import VitcodError


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("in_file", [False, True])
def test_zeros_to_write_to(tmp_path: Path, in_file: bool, dtype: type) -> None:
    array = Scratch(tmp_path if in_file else None).zeros((3, 5, 7), dtype)
    assert (array.shape, array.dtype, array.any()) == ((3, 5, 7), np.dtype(dtype), False)
    array[1] = 1
    assert array.sum() == 35
    assert array.flags.c_contiguous
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_memory_is_given_back_when_the_array_goes() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size, before = 2**27, resident()
    array = Scratch().zeros((size,), np.uint8)
    array[...] = 1
    assert resident() > before + 0.9 * size
    del array
    assert resident() < before + 0.1 * size


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(VitcodError, match=r"temporary file of 0\.0 GB is needed in .*--img-size"):
        Scratch(tmp_path).zeros((2, 3), np.float32)
