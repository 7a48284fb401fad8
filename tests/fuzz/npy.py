"""Published ``.npy`` arrays: a strict reader of the tests' own, and arrays made by hand."""

from __future__ import annotations

import ast
import io
import struct
from typing import Any

import numpy as np
import torch

from fuzz import safetensors_files as st
from fuzz.case import Bench
from fuzz.facts import SHAPE
from fuzz.files import Made


def strictly_parsed(content: bytes) -> np.ndarray | None:
    """The array of a ``.npy`` file by the letter of the format; None where it is not quite one."""
    try:
        if content[:6] != b"\x93NUMPY" or content[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
            return None
        width = 2 if content[6] == 1 else 4
        size = int.from_bytes(content[8 : 8 + width], "little")
        text, data = content[8 + width : 8 + width + size], content[8 + width + size :]
        header = ast.literal_eval(text.decode("latin1").strip())
        dtype, shape = np.dtype(header["descr"]), header["shape"]
        if set(header) != {"descr", "fortran_order", "shape"} or dtype.hasobject or len(text) != size:
            return None
        if not isinstance(header["fortran_order"], bool) or not all(type(n) is int and n >= 0 for n in shape):
            return None
        if int(np.prod([dtype.itemsize, *shape], dtype=object)) != len(data):
            return None
        return np.frombuffer(data, dtype).reshape(shape, order="F" if header["fortran_order"] else "C")
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError, AttributeError):
        return None


def _is_map(array: np.ndarray | None) -> bool:
    if array is None or array.dtype.kind != "f" or array.ndim != 4 or array.shape[2] != array.shape[3]:
        return False
    if 0 in array.shape or not (np.isfinite(array).all() and (array >= 0).all()):
        return False
    return bool(np.abs(array.astype(np.float32).sum(-1) - 1).max() <= 1e-3)


def read_map(bench: Bench, content: bytes) -> np.ndarray | None:
    array = strictly_parsed(content)
    return array if _is_map(array) else None


def read_mask(bench: Bench, content: bytes) -> np.ndarray | None:
    """True = kept; None where it is no mask of the small model."""
    array = strictly_parsed(content)
    if array is None or array.dtype != np.bool_ or array.shape != SHAPE or array.view(np.uint8).max() > 1:
        return None
    return ~array


def saved(array: Any, **options: Any) -> bytes:
    """The array as ``numpy.save`` writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def headed(header: str | bytes, data: bytes = b"", version: int = 2) -> bytes:
    """A ``.npy`` file of this header and data."""
    text = header.encode("latin1", "replace") if isinstance(header, str) else header
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<I" if version > 1 else "<H", len(text)) + text + data


def array_claims(bench: Bench) -> Made:
    """Headers that claim more than there is, or ask for more than numbers."""
    data = bench.asset("map.npy")[128:]
    shapes = [
        "(100000, 100000)",
        "(2, 3, 9000000000, 9000000000)",
        "(-2, 3, 17, 17)",
        "(2, 3, 17, 10**9)",
        "(2**62,) * 4",
        "(1, 1, 200000, 200000)",
        "(0, 3, 17, 17)",
        "(2.0, 3, 17, 17)",
        "(True, 3, 17, 17)",
        "2",
        "()",
        "(1,) * 70",
        "(1, 1, 1" + "0" * 5000 + ", 1)",
    ]
    dtypes = [
        "|O",
        "|V4",
        "<U1000000",
        "|S999999999",
        "<M8[ns]",
        "<c8",
        "<f17",
        "[('a', '<f4')]",
        "<f4\x1b[31m",
        "f",
        ">i2",
        "[" * 200 + "]" * 200,
        ",".join(["f4"] * 10_000),
    ]
    choice = bench.number % 4
    if choice == 0:
        return Made(headed(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {bench.any(shapes)}, }}\n", data))
    if choice == 1:
        text = repr(bench.any(dtypes)) if bench.random.random() < 0.9 else "('<f4', (9999, 9999, 9999))"
        return Made(headed(f"{{'descr': {text}, 'fortran_order': False, 'shape': (2, 3, 17, 17), }}\n", data))
    headers = [
        "(" * 100_000,
        "{" * 9000,
        "x" * 9_999,
        "[1," * 90_000,
        "'\x1b[31m",
        "-" * 200_000 + "1",
        "\n" * 1_000_000,
        "__import__('os').system('touch pwned')",
        "{'descr': '<f4'}",
        "1 + " * 50_000 + "1",
        "",
        "{}",
        "None",
    ]
    if choice == 2:
        return Made(headed(bench.any(headers), data))
    huge = bench.any([0xFFFFFFFF, 0x7FFFFFFF, 1 << 28])
    return Made(b"\x93NUMPY\x02\x00" + struct.pack("<I", huge) + b"{'descr': '<f4'" + data)


def array_layouts(bench: Bench) -> Made:
    """Layouts that numpy has and people use; they are read as what they say."""
    array = np.load(bench.assets / "map.npy")
    match bench.number % 4:
        case 0:
            return Made(saved(np.asfortranarray(array)), array, refusable=False)
        case 1:
            return Made(saved(array.astype(">f4")), array.astype(">f4"), refusable=False)
        case 2:
            return Made(saved(array.astype(np.float64)), array.astype(np.float64), refusable=False)
        case _:
            kinds: list[Any] = [
                np.array([{"a": 1}], dtype=object),
                np.array(["x"] * 4),
                np.array(3.0),
                array[..., None],
                array.astype("M8[s]"),
                array.astype([("a", "<f4")]),
                np.ma.masked_array([1.0, 2.0]),
            ]
            return Made(saved(bench.any(kinds), allow_pickle=True))


def array_changed(asset: str, change: str) -> Any:
    def make(bench: Bench) -> Made:
        tensor = torch.from_numpy(np.load(bench.assets / asset))
        if tensor.dtype == torch.bool and change == "nonfinite":
            return Made(saved(np.where(tensor.numpy(), np.nan, 0.0)))
        other = st.CHANGES[change](tensor, bench)
        if other.dtype in (torch.float8_e4m3fn, torch.bool) and change == "dtype":
            other = other.to(torch.uint8)  # numpy has no such floats, and an array of booleans is a mask
        return Made(saved(other.numpy()))

    return make
