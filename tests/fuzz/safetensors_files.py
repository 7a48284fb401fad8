"""Safetensors files: a strict reader of the tests' own, and files made by hand, ours with a right checksum."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fuzz.case import Bench
from fuzz.files import Made
from vitcod_cli.artifacts.safetensors_file import write_safetensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def pack(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of this header (JSON, or its bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a whole file, and its data."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def strictly_parsed(content: bytes) -> dict[str, Tensor] | None:
    """The floating-point tensors of a file by the letter of the format; None where it is not quite one."""
    try:
        (size,) = struct.unpack("<Q", content[:8])
        if size > len(content) - 8 or content[8:9] != b"{":
            return None
        header = json.loads(content[8 : 8 + size].decode("utf-8"), object_pairs_hook=_without_doubles)
        data, tensors, end = content[8 + size :], {}, 0
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            dtype = DTYPES[entry["dtype"]]
            if start != end or stop > len(data):
                return None
            flat = torch.frombuffer(bytearray(data[start:stop]), dtype=dtype)
            tensors[name] = flat.reshape(entry["shape"])
            end = stop
        return tensors if end == len(data) else None
    except (ValueError, KeyError, TypeError, RuntimeError, struct.error, AttributeError):
        return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and our metadata of a whole file of ours."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
        return tensors, json.loads(file.metadata()["vitcod"])


def sealed(bench: Bench, tensors: dict[str, Any], info: dict[str, Any], kind: str | None = None) -> bytes:
    """A file of ours with these tensors and metadata, its checksum right, by our own writer."""
    info = {key: value for key, value in info.items() if key not in ("version", "sha256_of_tensors")}
    kind, path = str(info.pop("format")) if kind is None else kind, bench.folder / "sealed"
    write_safetensors(path, {name: torch.as_tensor(value) for name, value in tensors.items()}, kind, info)
    content = path.read_bytes()
    path.unlink()
    return content


# -- claims of a header ----------------------------------------------------------------------


def claims(asset: str) -> Callable[[Bench], Made]:
    """Headers that claim what isn't there: sizes, shapes, counts, depth."""

    def make(bench: Bench) -> Made:
        header, data = unpack(bench.asset(asset))
        name = bench.any([key for key in header if key != "__metadata__"])
        entry = header[name]
        match bench.number % 14:
            case 0:
                size = bench.any([1 << 63, (1 << 64) - 1, 1 << 40, 99_999_999, 100_000_001])
                return Made(struct.pack("<Q", size) + bench.asset(asset)[8:])
            case 1:
                entry["shape"] = [bench.any([1 << 62, 1 << 40, 10**30]), *entry["shape"]]
            case 2:
                entry["shape"] = [1 << 32, 1 << 32]
            case 3:
                entry["data_offsets"] = [0, 1 << bench.any([40, 62, 63])]
            case 4:
                entry["data_offsets"] = [1 << 62, (1 << 62) + 4]
            case 5:
                entry["data_offsets"] = entry["data_offsets"][::-1]
            case 6:
                entry["shape"] = [-1]
            case 7:
                return Made(pack(b"[" * bench.any([1000, 200_000]), data))
            case 8:
                deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
                return Made(pack(b'{"__metadata__":' + deep + b"}", data))
            case 9:
                extra = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
                return Made(pack({**extra, **header}, data))
            case 10:
                header[name] = {**entry, "shape": [0] * 3, "data_offsets": [0, 0]}
            case 11:
                other = bench.any([key for key in header if key != "__metadata__"])
                header["twice"] = dict(header[other])
            case 12:
                entry["shape"] = [1] * 5000 + entry["shape"]
            case _:
                return Made(pack(json.dumps(header).encode()[:-1] + b"," + json.dumps(header)[1:].encode(), data))
        return Made(pack(header, data))

    return make


# -- tensors of another kind ------------------------------------------------------------------


def other_dtype(tensor: Tensor, bench: Bench) -> Tensor:
    """The tensor in a dtype that it must not have."""
    choices = [torch.int64, torch.int32, torch.uint8, torch.complex64, torch.bool, torch.float8_e4m3fn]
    return tensor.to(bench.turn([dtype for dtype in choices if dtype != tensor.dtype]))


def other_rank(tensor: Tensor, bench: Bench) -> Tensor:
    """The same values with one dimension more or fewer."""
    choices = [tensor[None], tensor[..., None], tensor.reshape(-1)[:1].reshape(()), tensor[None, None]]
    return choices[bench.number % 4] if tensor.ndim < 2 or bench.random.random() < 0.5 else tensor.flatten(0, 1)


def other_shape(tensor: Tensor, bench: Bench) -> Tensor:
    """One of the last two dimensions longer, shorter or empty; or the first and the last turned around.

    The first two of a map or mask are free: another number of blocks and heads is another model.
    """
    axis = tensor.ndim - 1 - int(bench.random.integers(min(2, tensor.ndim)))
    match bench.number % 4:
        case 0:
            return torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
        case 1 if tensor.shape[axis] > 1:
            return tensor.narrow(axis, 0, tensor.shape[axis] - 1)
        case 2 if tensor.ndim > 1 and tensor.shape[0] != tensor.shape[-1]:
            return tensor.transpose(0, -1)
        case _:
            return tensor.narrow(axis, 0, 0)


def nonfinite(tensor: Tensor, bench: Bench) -> Tensor:
    """NaN or infinity in one place."""
    broken = tensor.clone()
    broken.view(-1)[int(bench.random.integers(tensor.numel()))] = bench.turn([float("nan"), np.inf, -np.inf])
    return broken


CHANGES: dict[str, Callable[[Tensor, Bench], Tensor]] = {
    "dtype": other_dtype,
    "rank": other_rank,
    "shape": other_shape,
    "nonfinite": nonfinite,
}


def changed(asset: str, change: str, names: tuple[str, ...] = ()) -> Callable[[Bench], Made]:
    """A file of ours with one tensor changed and a right checksum, to be refused."""

    def make(bench: Bench) -> Made:
        tensors, info = contents(bench.assets / asset)
        candidates = [n for n, t in tensors.items() if change != "nonfinite" or t.is_floating_point()]
        name = bench.any(names or candidates)
        tensors[name] = CHANGES[change](tensors[name], bench)
        return Made(sealed(bench, tensors, info))

    return make
