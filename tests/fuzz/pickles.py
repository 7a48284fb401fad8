"""Published ``.pth`` checkpoints, new and old: damaged, hostile, and larger than they look."""

from __future__ import annotations

import argparse
import io
import os
import struct
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzz import safetensors_files as st
from fuzz.case import Bench
from fuzz.checkpoints import DATA
from fuzz.facts import KWARGS, MODEL, SIZE, Tensors, evaluates_as, holds, plain_model
from fuzz.files import FileReader, Made, Use
from fuzz.legacy import legacy_bytes


def _intact(content: bytes) -> bool:
    """Whether every entry of a zip archive has the checksum that the archive says."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except Exception:  # whatever a damaged archive raises
        return False


def _parse(bench: Bench, content: bytes, *, zipped: bool) -> Tensors | None:
    """The weights, as torch's own reader of plain data sees them."""
    if zipped and not _intact(content):
        return None
    allowed: list[Any] = [argparse.Namespace, np.dtype, type(np.dtype("f8")), np.float64(0).__reduce__()[0]]
    try:
        with torch.serialization.safe_globals(allowed):
            read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        weights = read["model"]
        if read["args"].model != MODEL or plain_model(weights) is None:
            return None
        if any(
            getattr(read["args"], name) != value
            for name, value in (("model_kwargs", KWARGS), ("input_size", SIZE))
        ):
            return None
    except Exception:  # whatever damaged bytes raise
        return None
    return dict(weights)


def _whole(bench: Bench) -> dict[str, Any]:
    read: dict[str, Any] = torch.load(bench.assets / "published.pth", weights_only=False)
    return read


def _saved(content: Any, zipped: bool) -> bytes:
    if not zipped:
        return legacy_bytes(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _changed(bench: Bench, change: str, zipped: bool) -> Made:
    content = _whole(bench)
    names = [
        n
        for n in content["model"]
        if n not in ("pos_embed", "head.weight", "head.bias", "patch_embed.proj.weight")
    ]
    name = bench.any(names)
    content["model"][name] = st.CHANGES[change](content["model"][name], bench).clone()
    return Made(_saved(content, zipped))


class _Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _claims(bench: Bench, zipped: bool) -> Made:
    """Small files that would be huge, or never end."""
    content = _whole(bench)
    weights = content["model"]
    name = bench.any([name for name in weights if name != "pos_embed"])
    match bench.number % 10:
        case 0:
            weights[name] = torch.zeros(1).expand(10**6, 10**6)
        case 1:
            content["more"] = torch.zeros(1).expand(10**9)
            return Made(_saved(content, zipped), dict(weights))
        case 2:
            weights["pos_embed"] = torch.zeros(1).expand(1, 10**8, 24)
        case 3:
            claim: tuple[Any, ...] = (0, (1 << 40,), (1,), False, OrderedDict())
            weights[name] = _Calls(torch._utils._rebuild_tensor_v2, torch.zeros(2), *claim)
        case 4:
            value: Any = 1
            for _ in range(bench.any([100, 200])):
                value = [value]
            content["args"].deep = value
            return Made(_saved(content, zipped), dict(weights))
        case 5:
            content["args"].text = "x" * 5_000_000
            return Made(_saved(content, zipped), dict(weights))
        case 6:
            content["args"].number = 10**4000
            return Made(_saved(content, zipped), dict(weights))
        case 7:
            claimed = (
                b"\x80\x04" + bench.any([b"\x8e", b"\x8d"]) + struct.pack("<Q", bench.any([1 << 40, 1 << 62]))
            )
            return Made(_with_pickle(bench, claimed + b"x", zipped))
        case 8:
            return Made(_with_pickle(bench, b"\x80\x02" + b"(" * bench.any([1000, 500_000]) + b"l.", zipped))
        case _:
            weights |= {f"extra{index}": torch.zeros(0) for index in range(2000)}
    return Made(_saved(content, zipped))


def _with_pickle(bench: Bench, code: bytes, zipped: bool) -> bytes:
    """The whole file with another ``data.pkl``; of an old file, its beginning."""
    if not zipped:
        return code
    buffer = io.BytesIO()
    with zipfile.ZipFile(bench.assets / "published.pth") as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, code if name.endswith("data.pkl") else source.read(name))
    return buffer.getvalue()


def _hostile(bench: Bench, zipped: bool) -> Made:
    """Pickles that run code, and ``args`` that lead elsewhere."""
    content = _whole(bench)
    kind = bench.number % 4
    if kind == 0:
        functions: list[_Calls] = [
            _Calls(os.system, "touch pwned"),
            _Calls(eval, "open('pwned', 'w')"),
            _Calls(exec, "open('pwned', 'w')"),
            _Calls(Path.touch, Path("pwned")),
            _Calls(open, "pwned", "w"),
            _Calls(partial, os.system, "touch pwned"),
            _Calls(getattr, Path, "touch"),
            _Calls(torch.load, "canary.pth"),
            _Calls(np.load, "canary.npy", None, True),
            _Calls(bytearray, 1 << 40),
            _Calls(argparse.FileType("w"), "pwned"),
        ]
        content[bench.any(["args", "epoch", "more", "model"])] = bench.any(functions)
        return Made(_saved(content, zipped))
    if kind == 1:
        args: list[Any] = [
            None,
            [],
            "x",
            {},
            1,
            {"model": 1},
            {"model": ["x"]},
            {"model": ""},
            {"model": "\x1b[31m\n"},
            {"model": "x" * 100_000},
            {"model": MODEL, "model_kwargs": [1]},
            {1: 2},
            {"model": "../x"},
            {"model": MODEL, "input_size": "x"},
            {"model": "hf-hub:nobody/nothing"},
        ]
        content["args"] = bench.any(args)
        return Made(_saved(content, zipped), None)
    if kind == 2:
        from fuzz.metadata import FOREIGN_KWARGS

        content["args"].model_kwargs = {**KWARGS, **bench.any(FOREIGN_KWARGS)}
        torch.save({"pwned": torch.ones(1)}, bench.folder / "canary.pth")
        return Made(_saved(content, zipped), dict(content["model"]))
    values: list[Any] = [
        "\x1b[2J",
        "a\nb",
        "/etc/passwd",
        "x" * 300,
        3,
        ["a"],
        "/dev/zero",
        ".",
        "~",
        {"a": 1},
        b"x",
        -1.5,
    ]
    setattr(content["args"], bench.any(["mask_path", "output_dir", "resume", "svd_type", "lr"]), bench.any(values))
    return Made(_saved(content, zipped), dict(content["model"]))


def _reader(name: str, asset: str, zipped: bool) -> FileReader:
    return FileReader(
        name=name,
        asset=asset,
        parse=partial(_parse, zipped=zipped),
        uses=[
            Use(("eval", "--checkpoint={}", *DATA), lambda bench, content: evaluates_as(content, bench.assets)),
            Use(
                ("convert", "--output=out.safetensors", "--", "{}"),
                lambda bench, content: holds("out.safetensors", content),
                ("out.safetensors",),
                generous=True,
            ),
        ],
        by_hand={
            **{change: partial(_changed, change=change, zipped=zipped) for change in st.CHANGES},
            "claims": partial(_claims, zipped=zipped),
            "metadata": partial(_hostile, zipped=zipped),
        },
        foreign=("map.npy", "mask.npy", "val.tar", "images/val/class0/00.png", "config.yaml", "map.safetensors"),
    )


READERS = [_reader("pth", "published.pth", True), _reader("pth old", "legacy.pth", False)]
