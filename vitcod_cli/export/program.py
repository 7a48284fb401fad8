"""A model as a program that needs neither vitcod nor timm: for torch.export, or ONNX."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitcod_cli.artifacts.describe import METADATA_KEY
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.errors import VitcodError
from vitcod_cli.export.onnx_form import LowRankProjection, use_onnx_form
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.kernels.planned import PlannedKernel
from vitcod_cli.model.layers import attentions, prepare_inference
from vitcod_cli.model.read_rows import rows_read

ONNX_BYTES = 2**31 - 2**26
"""Weights that fit into one ONNX file: protocol buffers end at 2 GiB."""

_TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit, that other kernels may make."""


class InferenceProgram(nn.Module):
    """``model`` made ready for inference (auto-encoders folded, attention planned), and its normalisation.

    Args:
        model: is changed, and not fit for training afterwards.
        preprocess: normalises uint8 images first; None: the program takes normalised ones.
        batch_size: images in every batch; None: any number, and then nothing can be planned.

    Attributes:
        planned: how many of the ``num_blocks`` blocks leave out what the mask prunes. The last one never does
            where the head reads some of its rows alone: all other rows are left out.
        least_batch: smallest fixed batch at which a block would; None if no block ever would.
        products: share of the logits of attention that is computed.
        dense_bytes: what the weights take without auto-encoders and mask.
    """

    def __init__(self, model: Transformer, preprocess: Preprocess | None, batch_size: int | None) -> None:
        super().__init__()
        self.dense_bytes = _dense_bytes(model)
        prepare_inference(model.eval())
        layers = attentions(model)
        least = [layer.kernel.plan.least_batch for layer in layers if isinstance(layer.kernel, PlannedKernel)]
        self.least_batch = int(min(least)) if least else None
        for layer in layers:
            kernel = layer.kernel
            # What no forward reads would still be written to the file.
            layer.keep = None
            if isinstance(kernel, PlannedKernel):
                if batch_size is not None and batch_size >= kernel.plan.least_batch:
                    kernel.additive = None
                else:
                    layer.kernel = FusedKernel(kernel.additive)
        rows, last = rows_read(model), layers[-1].kernel
        if rows is not None and isinstance(last, FusedKernel) and last.additive is not None:
            last.additive = last.additive[:, :, :rows].clone()
        self.num_blocks = len(layers)
        plans = [layer.kernel.plan for layer in layers if isinstance(layer.kernel, PlannedKernel)]
        self.planned = len(plans)
        self.products = 1 - sum(1 - plan.products for plan in plans) / max(len(layers), 1)
        self.model = model
        self.figures = None if preprocess is None else preprocess.byte_figures(torch.device("cpu"))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        if self.figures is not None:
            mean, std = self.figures
            images = (images.float() - mean) / std
        logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True)
class Exported:
    """A program that has been written to memory, and read from there.

    Attributes:
        data: the file's content.
        difference: between its logits and the model's, the largest; None where nothing here can run it.
    """

    data: bytes
    difference: float | None


def export_program(program: InferenceProgram, images: Tensor, dynamic: bool, info: Mapping[str, Any]) -> Exported:
    """``program`` as a ``.pt2`` file of ``torch.export``, checked.

    Args:
        images: a batch of the kind that it takes; see :func:`example`.
        dynamic: whether it takes any number of images, or just as many.
        info: goes into the file, as ``vitcod.json``.

    Raises:
        RuntimeError: if the file computes something else.
    """
    file = io.BytesIO()
    torch.export.save(
        _trace(program, images, dynamic), file, extra_files={f"{METADATA_KEY}.json": json.dumps(info)}
    )
    file.seek(0)
    again = torch.export.load(file).module()
    batches = _batches(images, dynamic)
    return Exported(file.getvalue(), _difference(again, batches, _logits(program, batches)))


def export_onnx(
    program: InferenceProgram,
    images: Tensor,
    dynamic: bool,
    info: Mapping[str, Any],
    *,
    projections: Sequence[LowRankProjection | None],
    portable: bool = False,
) -> Exported:
    """``program`` as an ONNX file, with inputs ``images`` and outputs ``logits``; checked by onnxruntime if it is
    installed. ``program`` is not fit for anything else afterwards. Arguments as for :func:`export_program`, and

    Args:
        projections: of its layers, made of the model before the program was (:func:`low_rank_projections`).
        portable: whether it may use standard operators only, no fused one of onnxruntime.

    Raises:
        VitcodError: if it doesn't fit into one ONNX file.
        RuntimeError: if the file computes something else.
    """
    batches = _batches(images, dynamic)
    expected = _logits(program, batches)
    use_onnx_form(program.model, projections, portable=portable)
    size = sum(tensor.nbytes for tensor in (*program.parameters(), *program.buffers()))
    if size > ONNX_BYTES:
        raise VitcodError(
            f"--output: weights and masks take {size / 2**30:.1f} GiB, and an ONNX file can't hold 2; "
            "export to .pt2."
        )
    # onnxscript's optimiser looks through the whole graph at every node of it; runtimes have their own.
    onnx = torch.onnx.export(
        _trace(program, images, dynamic),
        dynamo=True,
        optimize=program.planned == 0,
        dynamic_shapes={"images": {0: "batch"}} if dynamic else None,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    assert onnx is not None
    onnx.model.metadata_props[METADATA_KEY] = json.dumps(info)
    proto = onnx.model_proto
    _forget_traces(proto.graph)
    data = proto.SerializeToString()
    if find_spec("onnxruntime") is None:
        return Exported(data, None)
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return Exported(data, _difference(run, batches, expected))


def check_onnx_packages() -> None:
    """Raise a VitcodError unless what :func:`export_onnx` needs is installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise VitcodError(
            f"--output to .onnx needs {' and '.join(missing)}; pip install 'vitcod[onnx]', or export to .pt2."
        )


def example(shape: tuple[int, int, int], dtype: torch.dtype, batch_size: int | None) -> Tensor:
    """A batch [B, C, H, W] of noise, as a program takes it; two images where any number will do.

    Args:
        shape: (C, H, W). dtype: uint8, or float32 for normalised images.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size or 2, *shape), generator=generator, dtype=torch.uint8)
    return images if dtype == torch.uint8 else images / 127.5 - 1


def _trace(program: InferenceProgram, images: Tensor, dynamic: bool) -> ExportedProgram:
    shapes = {"images": {0: Dim("batch")}} if dynamic else None
    with torch.no_grad():
        exported = torch.export.export(program, (images,), dynamic_shapes=shapes, strict=False)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine; files are passed on
    return exported


def _forget_traces(graph: Any) -> None:
    """Leave out of an ONNX graph what tells where each node came from: twice the size of the nodes themselves."""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


def _batches(images: Tensor, dynamic: bool) -> list[Tensor]:
    """What to try a program on: one image and three, too, where any number is taken."""
    return [images, images[:1], torch.cat([images, images[:1]])] if dynamic else [images]


@torch.inference_mode()
def _logits(program: InferenceProgram, batches: Sequence[Tensor]) -> list[Tensor]:
    return [program(batch) for batch in batches]


@torch.inference_mode()
def _difference(again: Callable[[Tensor], Tensor], batches: Sequence[Tensor], logits: Sequence[Tensor]) -> float:
    """Largest difference of what a program read back gives from the ``logits`` of each batch."""
    largest = 0.0
    for batch, expected in zip(batches, logits, strict=True):
        difference = float((again(batch) - expected).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RuntimeError(f"the exported program's logits differ from the model's by {difference}")
        largest = max(largest, difference)
    return largest


def _dense_bytes(model: Transformer) -> int:
    """Of float32 weights alone, without auto-encoders."""
    names = ("encoder_", "decoder_")
    own = [value for name, value in model.named_parameters() if not any(part in name for part in names)]
    return sum(4 * value.numel() for value in own)
