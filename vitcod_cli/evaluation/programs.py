"""Exported programs, run on images as a model is: ``.onnx`` by onnxruntime, ``.pt2`` by torch.export."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vitcod_cli.artifacts.describe import METADATA_KEY, PROGRAM, describe
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.program_input import Declared, ProgramInput, config_of, input_of, sparsity_in
from vitcod_cli.model.settings import ModelSettings

_LARGEST_INFO = 16 << 20


def is_program(path: str) -> bool:
    """Whether a file is an exported program."""
    description = describe(path) if os.path.isfile(path) else None
    return description is not None and description.kind == PROGRAM


class Program(nn.Module):
    """An exported program as a module: normalised images [B, C, H, W] to logits [B, classes]. It runs on the CPU.

    Attributes:
        preprocess: what its images are like.
        batch_size: of every batch that it takes; None for any.
        outputs: numbers that it gives for an image: logits, or the features of a model without a head.
        config: the model that it was made from; None where its file doesn't say.
        sparsity: of its mask; None without one.
        versions: of what runs it, beside torch.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        takes: ProgramInput,
        info: Mapping[str, Any],
        where: str,
        versions: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._run, self._takes, self._where = run, takes, where
        self.preprocess, self.batch_size, self.versions = takes.preprocess, takes.batch_size, versions
        self.config, self.sparsity = config_of(info), sparsity_in(info)
        # A first image shows now, not in the middle of an evaluation, whether it can be run.
        first = self.run(self.inputs_of(torch.zeros(1, *self.preprocess.input_size)))
        if first.ndim != 2 or not first.is_floating_point() or not first.shape[1]:
            raise VitcodError(
                f"{where} gives {str(first.dtype).removeprefix('torch.')} {list(first.shape)} for an image, not "
                "logits [1, classes]; export it again."
            )
        self.outputs = first.shape[1]

    @property
    def classes(self) -> int:
        """Of its logits; 0 where it gives features."""
        return 0 if self.config is not None and self.config.num_classes == 0 else self.outputs

    def preprocess_with(self, data: DataSettings) -> Preprocess:
        """The images as ``data`` wants them cropped and resized."""
        crop_pct = self.preprocess.crop_pct if data.crop_pct is None else data.crop_pct
        return replace(self.preprocess, crop_pct=crop_pct, interpolation=data.interpolation)

    def inputs_of(self, images: Tensor) -> Tensor:
        """Normalised images as the program takes them: on the CPU, as bytes again if it normalises itself."""
        inputs = images.float().cpu()
        if not self._takes.takes_bytes:
            return inputs.contiguous()
        mean, std = self.preprocess.byte_figures(inputs.device)
        return (inputs * std + mean).round().clamp(0, 255).to(torch.uint8).contiguous()

    def run(self, inputs: Tensor) -> Tensor:
        """Logits of what :meth:`inputs_of` gave; a batch smaller than the program's fixed one is filled up.

        Raises:
            VitcodError: if the program fails.
        """
        size = self.batch_size or len(inputs)
        parts = []
        for part in torch.split(inputs, size):
            missing = size - len(part)
            full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            try:
                logits = self._run(full)
            except Exception as error:  # neither onnxruntime nor torch has a common type for what can go wrong
                raise VitcodError(
                    f"{self._where} fails on images ({first_line(error)}); export it again."
                ) from error
            if not isinstance(logits, Tensor) or not logits.ndim or len(logits) != size:
                raise VitcodError(f"{self._where} doesn't give a row of logits for each image; export it again.")
            parts.append(logits[: len(part)])
        return torch.cat(parts)

    def forward(self, images: Tensor) -> Tensor:
        """Logits on the device of the images."""
        return self.run(self.inputs_of(images)).to(images.device)


def load_program(path: str, flag: str, *, trusted: bool, settings: ModelSettings) -> Program:
    """Read a program, and run it on one image.

    Args:
        trusted: whether the user has said that the file may run code.
        settings: whose ``--model`` says how images are made for a program of others, which doesn't.

    Raises:
        VitcodError: if it can't be read or run, nobody says how its images are made, or it needs a package or
            trust.
    """
    where = f"{flag} {path}"
    description = describe(path)
    if description is not None and description.container == "onnx":
        return _load_onnx(path, where, settings)
    if not trusted:
        raise VitcodError(
            f"{where} is a torch.export program, and reading one can run any code that is in it; say "
            "--trust-program if you made it, or export to .onnx."
        )
    return _load_pt2(path, where, settings)


def _load_onnx(path: str, where: str, settings: ModelSettings) -> Program:
    if find_spec("onnxruntime") is None:
        raise VitcodError(f"{where} is an ONNX program, which onnxruntime runs; pip install 'vitcod[onnx]'.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is said below, in a sentence
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = session.get_inputs()
        info = _parsed(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, ""))
    except Exception as error:  # onnxruntime has a type for everything, and no common one
        raise VitcodError(
            f"{where} can't be run by onnxruntime ({first_line(error)}); export it again."
        ) from error
    if len(inputs) != 1:
        raise VitcodError(f"{where} takes {len(inputs)} inputs, not images alone; export it again.")
    kind = str(inputs[0].type).removeprefix("tensor(").removesuffix(")")
    declared = Declared.of(inputs[0].shape, {"float": "float32"}.get(kind, kind))

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {inputs[0].name: images.numpy()})[0])

    return Program(
        run, input_of(declared, info, settings, where), info, where, {"onnxruntime": onnxruntime.__version__}
    )


def _load_pt2(path: str, where: str, settings: ModelSettings) -> Program:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith(f"/{METADATA_KEY}.json")), "")
            small = name and archive.getinfo(name).file_size <= _LARGEST_INFO
            info = _parsed(archive.read(name).decode() if small else "")
        program = torch.export.load(io.BytesIO(Path(path).read_bytes()))
        inputs = _inputs_of(program)
        module = program.module()
    except Exception as error:  # whatever a damaged archive raises inside torch
        raise VitcodError(
            f"{where} can't be read by torch.export ({first_line(error)}); export it again."
        ) from error
    if len(inputs) != 1:
        raise VitcodError(f"{where} takes {len(inputs)} inputs, not images alone; export it again.")

    def run(images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return cast(Tensor, module(images))

    return Program(run, input_of(inputs[0], info, settings, where), info, where, {})


def _inputs_of(program: ExportedProgram) -> list[Declared]:
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    return [Declared.of(value.shape, str(value.dtype).removeprefix("torch.")) for value in values]


def _parsed(text: str) -> dict[str, Any]:
    content = json.loads(text) if text else {}
    return content if isinstance(content, dict) else {}
