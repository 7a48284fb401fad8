"""``vitcod export``: from a checkpoint to a file for programs that know nothing of vitcod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitcod_cli.artifacts.checkpoint import write_checkpoint
from vitcod_cli.artifacts.files import atomic_path, free_path
from vitcod_cli.artifacts.npz_file import write_npz
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.export.onnx_form import low_rank_projections
from vitcod_cli.export.program import (
    Exported,
    InferenceProgram,
    check_onnx_packages,
    example,
    export_onnx,
    export_program,
)
from vitcod_cli.export.settings import ExportOptions
from vitcod_cli.export.weights import fold_for_timm, named_arrays
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import has_mask, keep_mask, mask_sparsity
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.reporting import Reporter


def export(options: ExportOptions, reporter: Reporter) -> dict[str, Any]:
    """Write the model that ``options`` name; returns what the file is, as plain values.

    Raises:
        VitcodError: if a package is missing, the model can't be read, or can't be exported in this form.
        RuntimeError: if the file computes something else than the model.
    """
    path = free_path(options.output, options.overwrite, inputs=(options.checkpoint, options.mask))
    if options.form == "onnx":
        check_onnx_packages()
    model = load_model(
        options.model, options.checkpoint, flag="--checkpoint", reporter=reporter, mask=options.mask
    )
    origin = provenance("vitcod export", options.checkpoint)
    if options.form == "weights":
        metadata = _write_weights(path, model, origin, reporter)
    elif options.form == "arrays":
        metadata = _write_arrays(path, model, origin)
    else:
        metadata = _write_program(path, model, options, origin, reporter)
    return {"path": str(path), "form": options.form, **metadata}


def _write_weights(path: Path, model: Transformer, origin: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    config = fold_for_timm(model)
    write_checkpoint(path, model.state_dict(), config, origin)
    size = config.img_size[0] if config.img_size[0] == config.img_size[1] else config.img_size
    arguments = {"num_classes": config.num_classes, "img_size": size, **config.model_kwargs}
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    reporter.info(f"timm.create_model({config.model!r}, {text}, checkpoint_path={str(path)!r})")
    return {"model_config": config.to_dict()}


def _write_arrays(path: Path, model: Transformer, origin: dict[str, Any]) -> dict[str, Any]:
    """Every tensor by its name, float32; the masks as one, with their statistics."""
    info = {"model_config": model_config(model).to_dict(), **origin}
    write_npz(path, named_arrays(model.state_dict(), keep_mask(model)), info)
    return info


def _write_program(
    path: Path, model: Transformer, options: ExportOptions, origin: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    preprocess = preprocess_of(model)
    info: dict[str, Any] = {
        "model_config": model_config(model).to_dict(),
        "sparsity": mask_sparsity(model) if has_mask(model) else None,
        "input": {"dtype": options.input, "batch_size": options.batch_size, **vars(preprocess)},
        **origin,
    }
    normalises = options.input == "uint8"
    is_onnx = options.form == "onnx"
    projections = low_rank_projections(model) if is_onnx else []  # the program folds them
    program = InferenceProgram(model, preprocess if normalises else None, options.batch_size)
    info["planned_blocks"] = program.planned
    images = example(preprocess.input_size, torch.uint8 if normalises else torch.float32, options.batch_size)
    reporter.info(
        "Tracing the model; with much to leave out, it takes a minute." if program.planned else "Tracing."
    )
    dynamic = options.batch_size is None
    if is_onnx:
        exported = export_onnx(program, images, dynamic, info, projections=projections, portable=options.portable)
    else:
        exported = export_program(program, images, dynamic, info)
    with atomic_path(path) as temporary:
        temporary.write_bytes(exported.data)
    for line in (*_description(program, info, exported), *_gain(program, info)):
        reporter.info(line)
    return {
        **info,
        "bytes": len(exported.data),
        "dense_bytes": program.dense_bytes,
        "attention_products": program.products,
        "max_difference": exported.difference,
    }


def _gain(program: InferenceProgram, info: dict[str, Any]) -> list[str]:
    """What the mask saves in this program, in a line."""
    if info["sparsity"] is None:
        return []
    pruned = f"The mask prunes {info['sparsity']:.1%} of the attention entries"
    if program.planned:
        left_out = f"{1 - program.products:.1%} of their products are left out"
        return [f"{pruned}; {left_out}, in {program.planned} of {program.num_blocks} blocks."]
    if program.least_batch is None:
        return [f"{pruned}; leaving them out isn't expected to save time at this size, so all are computed."]
    fixed = f"a fixed --batch-size of {program.least_batch} or more"
    return [f"{pruned}; leaving them out would save time with {fixed}."]


def _description(program: InferenceProgram, info: dict[str, Any], exported: Exported) -> list[str]:
    """What the program takes and gives, and how large it is, in lines."""
    difference = exported.difference
    takes, model = info["input"], program.model
    gives = f"logits [B, {model.num_classes}]" if model.num_classes else f"features [B, {model.num_features}]"
    batch = "B" if takes["batch_size"] is None else str(takes["batch_size"])
    shape = ", ".join([batch, *map(str, takes["input_size"])])
    lines = [f"Takes {takes['dtype']} images [{shape}], gives {gives.replace('B', batch)}."]
    if takes["dtype"] != "uint8":
        constants = f"mean {_rounded(takes['mean'])}, std {_rounded(takes['std'])}"
        lines.append(f"Normalise them first: {constants} of pixels in 0..1.")
    size, dense = len(exported.data) / 1e6, program.dense_bytes / 1e6
    lines.append(f"{size:,.1f} MB; the dense model's weights alone are {dense:,.1f} MB.")
    if difference is None:
        lines.append("Not run: for that, pip install onnxruntime.")
    else:
        what = "logits" if model.num_classes else "features"
        lines.append(f"Run from the file, its {what} differ from the model's by {difference:.1g} at most.")
    return lines


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 3) for value in values]
