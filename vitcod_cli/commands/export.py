"""``vitcod export``: the finished model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcod_cli.commands.common import JsonOption, MaskOption
from vitcod_cli.commands.eval import CheckpointOption
from vitcod_cli.errors import VitcodError
from vitcod_cli.export.settings import ExportSettings
from vitcod_cli.model.settings import ModelSettings

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from vitcod_cli.reporting import Reporter


def export(
    *,
    checkpoint: CheckpointOption = None,
    mask: MaskOption = None,
    model: ModelSettings,
    export: ExportSettings,
    json: JsonOption = False,
) -> None:
    """Write a model for programs that know nothing of vitcod.

    A .pt2 or .onnx file holds all of it: auto-encoders folded into qkv, the mask in the attention. It is
    run once before it is written, and its logits compared. Prints the path on stdout.
    """
    if checkpoint is None:
        raise VitcodError("--checkpoint is needed: name the weights to export.")
    form, path = export.form, export.path
    if path.exists() and not export.overwrite:
        raise VitcodError(f"{path} exists; replace it with --overwrite, or name another file with --output.")
    if form == "onnx":
        from vitcod_cli.export.program import check_onnx_packages

        check_onnx_packages()
    from vitcod_cli.cli.console import console, print_json, print_result
    from vitcod_cli.model.load import load_model

    reporter = console()
    network = load_model(model, checkpoint, flag="--checkpoint", reporter=reporter, mask=mask)
    origin = {"made_by": "vitcod export", **_origin(checkpoint)}
    if form == "weights":
        figures = _write_weights(path, network, origin, reporter)
    else:
        figures = _write_program(path, network, export, origin, reporter)
    if json:
        print_json({"path": str(path), "form": form, **figures})
    else:
        print_result(str(path))


def _write_weights(
    path: Path, network: VisionTransformer, origin: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    from vitcod_cli.artifacts.checkpoint import write_checkpoint
    from vitcod_cli.export.weights import fold_for_timm

    config = fold_for_timm(network)
    write_checkpoint(path, network.state_dict(), config, origin)
    size = config.img_size[0] if config.img_size[0] == config.img_size[1] else config.img_size
    arguments = {"num_classes": config.num_classes, "img_size": size, **config.model_kwargs}
    words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    reporter.info(f"timm.create_model({config.model!r}, {words}, checkpoint_path={str(path)!r})")
    return {"model_config": config.to_dict()}


def _write_program(
    path: Path, network: VisionTransformer, settings: ExportSettings, origin: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    import torch

    from vitcod_cli.artifacts.files import atomic_path
    from vitcod_cli.commands.common import preprocess_of
    from vitcod_cli.data.settings import DataSettings
    from vitcod_cli.export.program import InferenceProgram, example, export_onnx, export_program
    from vitcod_cli.masks.methods import sparsity_of
    from vitcod_cli.model.build import keep_mask, model_config

    keep, config = keep_mask(network), model_config(network)
    preprocess = preprocess_of(network, DataSettings())
    info: dict[str, Any] = {
        "model_config": config.to_dict(),
        "sparsity": None if keep is None else sparsity_of(keep.numpy()),
        "input": {"dtype": settings.input, "batch_size": settings.batch_size, **vars(preprocess)},
        **origin,
    }
    bytes_in = preprocess if settings.input == "uint8" else None
    program = InferenceProgram(network, bytes_in, settings.batch_size)
    info["planned_blocks"] = program.planned
    dtype = torch.float32 if bytes_in is None else torch.uint8
    images = example(preprocess.input_size, dtype, settings.batch_size)
    reporter.info(
        "Tracing the model; with much to leave out, it takes a minute." if program.planned else "Tracing."
    )
    make, dynamic = (export_onnx if settings.form == "onnx" else export_program), settings.batch_size is None
    made = make(program, images, dynamic, info)
    with atomic_path(path) as temporary:
        temporary.write_bytes(made.data)
    for line in _in_words(program, info, made.difference):
        reporter.info(line)
    return {**info, "bytes": len(made.data), "max_difference": made.difference}


def _in_words(program: Any, info: dict[str, Any], difference: float | None) -> list[str]:
    """What was made, in lines."""
    taken, model = info["input"], program.model
    given = f"logits [B, {model.num_classes}]" if model.num_classes else f"features [B, {model.num_features}]"
    batch = "B" if taken["batch_size"] is None else str(taken["batch_size"])
    shape = ", ".join([batch, *map(str, taken["input_size"])])
    lines = [f"Takes {taken['dtype']} pictures [{shape}], gives {given.replace('B', batch)}."]
    if taken["dtype"] != "uint8":
        figures = f"mean {_rounded(taken['mean'])}, std {_rounded(taken['std'])}"
        lines.append(f"Normalise them first: {figures} of pixels in 0..1.")
    if program.planned:
        lines.append(f"What the mask prunes is left out in blocks: {program.planned} of {program.num_blocks}.")
    elif program.least_batch is not None:
        lines.append(f"The mask would save time with a fixed --batch-size of {program.least_batch} or more.")
    if difference is None:
        lines.append("Not run: for that, pip install onnxruntime.")
    else:
        lines.append(f"Run from the file, its logits differ from the model's by {difference:.1g} at most.")
    return lines


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 3) for value in values]


def _origin(checkpoint: str) -> dict[str, str]:
    from vitcod_cli.artifacts.files import sha256_of

    origin = {"source": checkpoint.rpartition("/")[2]}
    return {**origin, "made_from": sha256_of(checkpoint)} if Path(checkpoint).is_file() else origin
