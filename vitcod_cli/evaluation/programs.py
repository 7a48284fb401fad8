"""Exported programs, run on images as a model is: ``.onnx`` by onnxruntime, ``.pt2`` by torch.export."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitcod_cli.artifacts.describe import METADATA_KEY, PROGRAM, describe
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError

_LARGEST_INFO = 16 << 20
_LARGEST_SIDE = 1 << 14


def is_program(path: str) -> bool:
    """Whether a file is an exported program."""
    description = describe(path) if os.path.isfile(path) else None
    return description is not None and description.kind == PROGRAM


class Program(nn.Module):
    """An exported program as a module: normalised images [B, C, H, W] to logits [B, classes], on the CPU.

    Attributes:
        info: what ``vitcod export`` wrote into the file.
        preprocess: what its images are like.
        batch_size: of every batch that it takes; None for any.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], info: Mapping[str, Any], where: str) -> None:
        super().__init__()
        self._run, self.info = run, dict(info)
        self._takes_bytes, self.batch_size, self.preprocess = _input_of(info, where)

    @property
    def sparsity(self) -> float | None:
        """Of its mask; None without one."""
        value = self.info.get("sparsity")
        return float(value) if isinstance(value, (int, float)) else None

    def preprocess_with(self, data: DataSettings) -> Preprocess:
        """The images as ``data`` wants them cropped and resized."""
        crop_pct = self.preprocess.crop_pct if data.crop_pct is None else data.crop_pct
        return replace(self.preprocess, crop_pct=crop_pct, interpolation=data.interpolation)

    def forward(self, images: Tensor) -> Tensor:
        """Logits; a last batch that is smaller than the program's fixed one is filled up."""
        inputs, device = images.cpu(), images.device
        if self._takes_bytes:
            mean, std = self.preprocess.byte_figures(inputs.device)
            inputs = (inputs * std + mean).round().clamp(0, 255).to(torch.uint8)
        if self.batch_size is None:
            return self._run(inputs).to(device)
        parts = []
        for part in torch.split(inputs, self.batch_size):
            missing = self.batch_size - len(part)
            full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(self._run(full)[: len(part)])
        return torch.cat(parts).to(device)


def load_program(path: str, flag: str, *, trusted: bool) -> Program:
    """Read a program.

    Args:
        trusted: whether the user has said that the file may run code.

    Raises:
        VitcodError: if it can't be read or run, says nothing of its images, or needs a package or trust.
    """
    where = f"{flag} {path}"
    if zipfile.is_zipfile(path):
        return _load_pt2(path, where, trusted=trusted)
    return _load_onnx(path, where)


def _load_onnx(path: str, where: str) -> Program:
    if find_spec("onnxruntime") is None:
        raise VitcodError(f"{where} is an ONNX program, which onnxruntime runs; pip install 'vitcod[onnx]'.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        info = _parsed(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))
    except Exception as error:  # onnxruntime has a type for everything, and no common one
        raise VitcodError(
            f"{where} can't be run by onnxruntime ({first_line(error)}); export it again."
        ) from error
    if len(names) != 1:
        raise VitcodError(f"{where} takes {len(names)} inputs, not images alone; give one of vitcod export.")

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {names[0]: images.numpy()})[0])
        except Exception as error:
            raise VitcodError(f"{where} fails on images ({first_line(error)}); export it again.") from error

    return Program(run, info, where)


def _load_pt2(path: str, where: str, *, trusted: bool) -> Program:
    if not trusted:
        raise VitcodError(
            f"{where} is a torch.export program, and reading one can run any code that is in it; say "
            "--trust-program if you made it, or export to .onnx."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"{METADATA_KEY}.json")), "")
            small = name and archive.getinfo(name).file_size <= _LARGEST_INFO
            info = _parsed(archive.read(name).decode() if small else "")
        module = torch.export.load(io.BytesIO(Path(path).read_bytes())).module()
    except Exception as error:  # whatever a damaged archive raises inside torch
        raise VitcodError(
            f"{where} can't be read by torch.export ({first_line(error)}); export it again."
        ) from error

    def run(images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return cast(Tensor, module(images))

    return Program(run, info, where)


def _parsed(text: str) -> dict[str, Any]:
    content = json.loads(text) if text else {}
    return content if isinstance(content, dict) else {}


def _input_of(info: Mapping[str, Any], where: str) -> tuple[bool, int | None, Preprocess]:
    """Whether it takes bytes, its fixed batch, and how images are made for it."""
    try:
        takes = dict(info["input"])
        size = tuple(int(side) for side in takes["input_size"])
        mean, std = (tuple(float(value) for value in takes[name]) for name in ("mean", "std"))
        batch = takes["batch_size"]
        sound = (
            len(size) == 3
            and len(mean) == len(std) == size[0] in (1, 3)
            and all(0 < side <= _LARGEST_SIDE for side in size)
            and all(math.isfinite(value) for value in (*mean, *std))
            and min(std) > 0
            and 0.1 <= float(takes["crop_pct"]) <= 1
            and (batch is None or (isinstance(batch, int) and 0 < batch <= _LARGEST_SIDE))
        )
        if not sound:
            raise ValueError("its input is none")
        crop_pct, interpolation = float(takes["crop_pct"]), str(takes["interpolation"])
        preprocess = Preprocess(cast(tuple[int, int, int], size), mean, std, interpolation, crop_pct)
    except (KeyError, TypeError, ValueError) as error:
        raise VitcodError(
            f"{where} doesn't say how its images are to be made, as programs of vitcod export do; export it again."
        ) from error
    return takes.get("dtype") == "uint8", batch, preprocess
