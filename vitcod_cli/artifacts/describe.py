"""Guess what a file is from its first bytes, to tell a user who gave the wrong one. Imports numpy only."""

from __future__ import annotations

import json
import os
import struct
from typing import NamedTuple

import numpy as np

METADATA_KEY = "vitcod"
CHECKPOINT = "checkpoint"
ATTENTION_MAP = "attention-map"
MASK = "mask"
RUN_STATE = "run-state"

_FLAGS = {CHECKPOINT: "--checkpoint or --init-from", ATTENTION_MAP: "--attn-map", MASK: "--mask"}
_NAMES = {CHECKPOINT: "checkpoint", ATTENTION_MAP: "attention map", MASK: "mask", RUN_STATE: "run state"}


class Description(NamedTuple):
    """What a file seems to be: words for people, and the suffix such a file usually has."""

    words: str
    suffix: str

    def __str__(self) -> str:
        return self.words


def describe(path: str | os.PathLike[str]) -> Description | None:
    """What the file seems to be, with the option to give it by, or None when nothing is known of it."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            if start[:6] == b"\x93NUMPY":
                return _describe_array(path)
            if start[:4] == b"PK\x03\x04":
                return _describe_zip(path)
            if len(start) == 8 and (size := struct.unpack("<Q", start)[0]) < 100_000_000:
                return _describe_safetensors(json.loads(file.read(size)))
    except (OSError, ValueError, RecursionError):
        pass
    return None


def _describe_array(path: str | os.PathLike[str]) -> Description:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = "[" + ", ".join(map(str, array.shape)) + "]"
    if array.ndim == 4 and array.dtype == np.bool_:
        return Description("a published mask (.npy); give it as --mask", ".npy")
    if array.ndim == 4 and array.dtype.kind == "f":
        return Description("a published attention map (.npy); give it as --attn-map", ".npy")
    return Description(f"a numpy array of {array.dtype} {shape}", ".npy")


def _describe_zip(path: str | os.PathLike[str]) -> Description:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return Description("a PyTorch checkpoint; give it as --checkpoint or --init-from", ".pth")
    if names and all(name.endswith(".npy") for name in names):
        return Description("an .npz archive of arrays; save one array with numpy.save instead", ".npz")
    return Description("a zip archive", ".zip")


def _describe_safetensors(header: dict[str, object]) -> Description | None:
    metadata = header.get("__metadata__")
    own = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if own is not None:
        kind = json.loads(own).get("format")
        name, flag = _NAMES.get(kind, f"file of kind {kind}"), _FLAGS.get(kind)
        return Description(f"a vitcod {name}" + (f"; give it as {flag}" if flag else ""), ".safetensors")
    if any(".attn.qkv." in name for name in header):
        words = "a plain checkpoint; give it as --checkpoint or --init-from"
        return Description(words, ".safetensors")
    return Description("a safetensors file that vitcod didn't make", ".safetensors") if header else None
