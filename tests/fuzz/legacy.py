"""The format of ``torch.save`` before torch 1.6, written so that the same content gives the same bytes.

torch itself names the storages after their places in memory and sorts them by these names, so that one seed would
damage another tensor in every process.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

TYPE_SIZES = {"short": 2, "int": 4, "long": 4}


def legacy_bytes(content: Any) -> bytes:
    """``content`` as a file of the old format; its tensors lie on the CPU."""
    file = io.BytesIO()
    little = sys.byteorder == "little"
    for head in (
        MAGIC_NUMBER,
        PROTOCOL_VERSION,
        {"protocol_version": PROTOCOL_VERSION, "little_endian": little, "type_sizes": TYPE_SIZES},
    ):
        pickle.dump(head, file, protocol=2)
    pickler = _Pickler(file, protocol=2)
    pickler.dump(content)
    pickle.dump([key for key, _ in pickler.storages.values()], file, protocol=2)
    for _, storage in pickler.storages.values():
        storage._untyped_storage._write_file(file, False, True, storage.dtype.itemsize)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Puts storages aside, under their number."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages: dict[int, tuple[str, torch.TypedStorage]] = {}

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if not isinstance(obj, torch.TypedStorage):
            return None
        kind = getattr(torch, obj._pickle_storage_type())
        key, _ = self.storages.setdefault(obj._untyped_storage._cdata, (f"{len(self.storages):05}", obj))
        return ("storage", kind, key, "cpu", obj._size(), None)
