"""How much each block, or head, minds being pruned, without labels: where a sparsity does its damage."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map
from vitcod_cli.artifacts.files import PICTURES, ROWS, check_suffix, free_path
from vitcod_cli.artifacts.provenance import provenance, versions
from vitcod_cli.artifacts.rows_file import write_rows
from vitcod_cli.attention.measure import measure_map
from vitcod_cli.attention.room import scratch_for_maps
from vitcod_cli.attention.sensitivity import measure_sensitivity
from vitcod_cli.attention.sensitivity_report import SensitivityReport
from vitcod_cli.data.calibration import CalibrationImages, calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.partial import partial_masks
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape, fold_auto_encoders, has_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.plots.sensitivity import save_sensitivity
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.steps.options import SENSITIVITY_MAP_IMAGES, SensitivityOptions


def sensitivity(options: SensitivityOptions, reporter: Reporter = QUIET) -> SensitivityReport:
    """Prune one block (or head) at a time, and measure how far the answer moves on held-out images.

    Which entries go is decided on training images, or by a map of them. Works on dense and low-rank models, on
    one process or many.

    Raises:
        VitcodError: if options, weights, map and data don't go together, or something can't be read or written.
    """
    with start(options.runtime) as runtime:
        on_main(lambda: _check_outputs(options))
        model = load_model(options.model, options.checkpoint, flag="--checkpoint", reporter=reporter)
        if has_mask(model):
            raise VitcodError(
                f"--checkpoint {options.checkpoint} has a mask already, and is no dense model to compare with; "
                "give the model that it was made from."
            )
        fold_auto_encoders(model)
        importance = options.method == "allocated"
        scratch = None
        if options.attn_map is None:
            folder = Path(tempfile.gettempdir())
            scratch = scratch_for_maps(
                model, runtime.device, folder, reporter, importance=importance, writes=False
            )
        given = None if options.attn_map is None else _read_map(options.attn_map, options, model)
        # Nobody looks at labels, whatever head the model has: images in any folders will do.
        train = None if given else open_dataset(options.data, "train", num_classes=0, reporter=reporter)
        held_out = open_dataset(options.data, "val", num_classes=0, train=train, reporter=reporter)
        runtime.prepare(model)
        read = partial(_read, model=model, options=options, runtime=runtime, reporter=reporter)
        images = read(held_out, options.images, "--images")
        attention_map = given
        if train is not None:
            sample = read(train, options.map_images or SENSITIVITY_MAP_IMAGES, "--map-images")
            attention_map = measure_map(model, sample, runtime, reporter, importance=importance, scratch=scratch)
        assert attention_map is not None
        masks = partial_masks(
            attention_map, sorted(options.sparsities), method=options.method, per=options.per, reporter=reporter
        )
        found = measure_sensitivity(model, images, masks, runtime, reporter, batch_size=options.batch_size)
        about = _about(options, model, attention_map, runtime)
    report = SensitivityReport(found, options.per == "head", model.num_classes > 0, about)
    on_main(lambda: _write(options, report))
    return report


def _check_outputs(options: SensitivityOptions) -> None:
    inputs = (options.checkpoint, options.attn_map)
    for flag, path, known in (("--output", options.output, ROWS), ("--plot", options.plot, PICTURES)):
        if path is not None:
            check_suffix(flag, path, known)
            free_path(path, options.overwrite, flag, inputs=inputs)


def _read_map(path: str, options: SensitivityOptions, model: Transformer) -> AttentionMap:
    """The map that the user gives; its prefix tokens are the model's."""
    attention_map = read_attention_map(path)
    if attention_map.attention.shape != attention_shape(model):
        raise VitcodError(
            f"--attn-map {path} has the shape {list(attention_map.attention.shape)}, and the model needs "
            f"{list(attention_shape(model))}; make one of this model with vitcod dump-attn."
        )
    if options.method == "allocated" and attention_map.importance is None:
        raise VitcodError(
            f"--attn-map {path} doesn't say what every entry is worth, which --method allocated prunes by; make "
            "it again with vitcod dump-attn --importance-images 256, or take --method info."
        )
    info = {**attention_map.info, "num_prefix_tokens": model.num_prefix_tokens}
    return replace(attention_map, info=info)


def _read(
    images: ImageData,
    count: int,
    flag: str,
    *,
    model: Transformer,
    options: SensitivityOptions,
    runtime: Runtime,
    reporter: Reporter,
) -> CalibrationImages:
    """``count`` images spread evenly over the split, or all; of a stream the first ones."""
    return calibration_images(
        images.evenly_spaced(count),
        preprocess_of(model, options.data),
        min(count, len(images) or count),
        workers=options.data.workers,
        device=runtime.device,
        seed=options.runtime.seed,
        flag=flag,
        reporter=reporter,
    )


def _about(
    options: SensitivityOptions, model: Transformer, attention_map: AttentionMap, runtime: Runtime
) -> dict[str, Any]:
    """What the figures depend on beside the parts, as plain values."""
    return {
        **provenance("vitcod sensitivity", options.checkpoint),
        "model": model_config(model).model,
        "per": options.per,
        "method": options.method,
        "map_images": attention_map.num_images,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def _write(options: SensitivityOptions, report: SensitivityReport) -> None:
    """The files that were asked for."""
    if options.output is not None:
        write_rows(Path(options.output), report.rows())
    if options.plot is not None:
        how = "by importance" if options.method == "allocated" else "by info cut"
        title = f"{report.about['model']}: sensitivity to pruning {how}"
        save_sensitivity(options.plot, report.rows(), report.measure, title=title)
