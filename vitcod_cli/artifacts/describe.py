"""Guess what a file is from its first bytes, to tell a user who gave the wrong one. Numpy only for an .npy."""

from __future__ import annotations

import json
import os
import struct
import warnings
from typing import Literal, NamedTuple

METADATA_KEY = "vitcod"
CHECKPOINT = "checkpoint"
ATTENTION_MAP = "attention-map"
MASK = "mask"
RUN_STATE = "run-state"
CALIBRATION = "calibration"
PROGRAM = "program"

_HINTS = {
    CHECKPOINT: "give it as --checkpoint or --init-from",
    ATTENTION_MAP: "give it as --attn-map",
    MASK: "give it as --mask",
    RUN_STATE: "the weights are in best.safetensors and last.safetensors beside it",
    CALIBRATION: "go on with its run with --resume: the weights are in last.safetensors at its end",
}
_PROGRAM = "an exported program; give the checkpoint that it was made from"
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"
_OUR_ARRAYS = (f"{METADATA_KEY}.npy", "csc_pointers.npy")
"""What is in an ``.npz`` of convert and export, and of polarize."""
_PACKED = "; unpack it first"
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file; get that with git lfs pull",
    b"\x1f\x8b": f"compressed by gzip{_PACKED}",
    b"BZh": f"compressed by bzip2{_PACKED}",
    b"\xfd7zXZ\x00": f"compressed by xz{_PACKED}",
    b"\x28\xb5\x2f\xfd": f"compressed by zstd{_PACKED}",
    b"Rar!": f"a RAR archive{_PACKED}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive{_PACKED}",
    b"GGUF": "a GGUF file, whose weights are quantised; give the PyTorch or safetensors weights",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes; give the PyTorch or safetensors weights",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
}
"""What other files begin with."""
_PAGE = "a web page; download the file itself, not the page about it"
_LARGEST_HEADER = 100_000_000  # safetensors' own limit


class Description(NamedTuple):
    """What a file seems to be.

    Attributes:
        text: for people, with the option to give such a file by.
        container: how it is stored.
        kind: ``checkpoint``, ``attention-map``, ``mask``, ``run-state``, ``calibration``, ``program``, or None.
        own: whether vitcod wrote it.
    """

    text: str
    container: Literal["safetensors", "npy", "torch", "zip", "onnx", "other"]
    kind: str | None = None
    own: bool = False

    def __str__(self) -> str:
        return self.text


def describe(path: str | os.PathLike[str]) -> Description | None:
    """What the file seems to be, or None when nothing is known of it (an old PyTorch file, say)."""
    try:
        with open(path, "rb") as file:
            begin = file.read(64)
            if text := _foreign(begin):
                return Description(text, "other")
            start = begin[:8]
            file.seek(8)
            if start.startswith((_NPY, _ZIP)):
                return (_describe_array if start.startswith(_NPY) else _describe_zip)(path)
            if _is_onnx(begin, os.fspath(path)):
                return Description(_PROGRAM, "onnx", PROGRAM)
            if len(start) == 8 and (size := struct.unpack("<Q", start)[0]) <= _LARGEST_HEADER:
                return _describe_safetensors(json.loads(file.read(size)))
    except Exception:  # a guess for a message must not fail, whatever the bytes are
        return None
    return None


def _is_onnx(begin: bytes, path: str) -> bool:
    """ONNX has no signature: a message of protocol buffers, first the version of its format, then other fields."""
    if not begin.startswith(b"\x08"):
        return False
    # Behind the version: the name or version of the producer, a domain, a text, the graph, an operator set.
    # A safetensors file that begins so has the length of its header there, which ends in zeros.
    fields = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    return path.endswith(".onnx") or (len(begin) > 8 and begin[2] in fields and any(begin[4:8]))


def _foreign(begin: bytes) -> str | None:
    """What a file is that neither we nor PyTorch nor numpy write, by what it begins with."""
    if begin.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return _PAGE
    return next((text for mark, text in _OTHERS.items() if begin.startswith(mark)), None)


def in_words(path: str | os.PathLike[str]) -> str:
    """What the file seems to be, as the end of a sentence."""
    return f"it seems to be {describe(path) or 'something else'}"


def _described(text: str, container: Literal["safetensors", "npy", "torch"], kind: str, own: bool) -> Description:
    return Description(f"{text}; {_HINTS[kind]}" if kind in _HINTS else text, container, kind, own)


def _describe_array(path: str | os.PathLike[str]) -> Description:
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the Python that a damaged header is
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 4 and array.dtype == np.bool_:
        return _described("a published mask", "npy", MASK, own=False)
    if array.ndim == 4 and array.dtype.kind == "f":
        return _described("a published attention map", "npy", ATTENTION_MAP, own=False)
    return Description(f"a numpy array of {array.dtype} {list(array.shape)}", "npy")


def _describe_zip(path: str | os.PathLike[str]) -> Description:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/archive_format") for name in names):
        return Description(_PROGRAM, "zip", PROGRAM)
    if any(name.endswith("data.pkl") for name in names):
        return _described("a PyTorch checkpoint", "torch", CHECKPOINT, own=False)
    if any(name in names for name in _OUR_ARRAYS):  # a mask among them is True where an .npy's is False
        text = "an .npz archive that vitcod made for other programs; give the file that it was made from"
        return Description(text, "zip")
    if names and all(name.endswith(".npy") for name in names):
        return Description("an .npz archive; save its one array with numpy.save instead", "zip")
    return Description("a zip archive", "zip")


def _describe_safetensors(header: dict[str, object]) -> Description:
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and METADATA_KEY in metadata:
        kind = str(json.loads(metadata[METADATA_KEY])["format"])[:40]
        return _described(f"a vitcod {kind.replace('-', ' ')}", "safetensors", kind, own=True)
    if any(name.endswith(".weight") for name in header):
        return _described("a plain checkpoint", "safetensors", CHECKPOINT, own=False)
    return Description("a safetensors file that is not vitcod's", "safetensors")
