"""Step 2: the mean attention map of a model over its training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.files import free_path
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.attention.collect import collect_attention
from vitcod_cli.attention.importance import block_weights, collect_importance
from vitcod_cli.attention.room import scratch_for_maps
from vitcod_cli.data.calibration import calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.distributed import is_main, on_main
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import fold_auto_encoders, has_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import start
from vitcod_cli.steps.options import AttentionMapOptions


class MapResult(NamedTuple):
    """What :func:`dump_attention` wrote: the file, how many images it is the mean of, and [L, H, N, N]."""

    path: str
    images: int
    shape: list[int]


def dump_attention(options: AttentionMapOptions, reporter: Reporter = QUIET) -> MapResult:
    """Average the attention of every head over images, and write the map.

    Works on dense, low-rank and sparse models alike, on one process or many.

    Raises:
        VitcodError: if options, weights and data don't go together, or something can't be read or written.
    """
    with start(options.runtime) as runtime:
        on_main(lambda: free_path(options.output, options.overwrite, inputs=(options.checkpoint, options.mask)))
        model = load_model(
            options.model, options.checkpoint, flag="--checkpoint", reporter=reporter, mask=options.mask
        )
        fold_auto_encoders(model)
        scratch = scratch_for_maps(
            model,
            runtime.device,
            Path(options.output).parent,
            reporter,
            importance=options.importance_images > 0,
        )
        images = open_dataset(options.data, options.split, num_classes=model.num_classes, reporter=reporter)
        preprocess = preprocess_of(model, options.data)
        sample = calibration_images(
            images,
            preprocess,
            options.importance_images,
            workers=options.data.workers,
            device=runtime.device,
            seed=options.runtime.seed,
            flag="--importance-images",
            reporter=reporter,
        )
        if options.max_images is not None:
            images = images.evenly_spaced(options.max_images)
        loader = eval_loader(
            images,
            preprocess,
            batch_size=options.batch_size,
            workers=options.data.workers,
            device=runtime.device,
            transform=options.transform,
            seed=options.runtime.seed,
            reporter=reporter,
        )
        runtime.compiled(runtime.prepare(model))
        attention, num_images = collect_attention(
            model, loader, runtime, reporter, options.max_images, scratch=scratch
        )
        importance = None
        if options.importance_images:
            importance = collect_importance(
                model, sample, runtime, reporter, late_weight=options.late_weight, scratch=scratch
            )
        if is_main():
            info = {**_info(model, options), "importance_images": sample.num_images}
            if importance is not None:
                info["late_weight"] = block_weights(model, options.late_weight)[-1]
            write_attention_map(options.output, AttentionMap(attention, num_images, info, importance))
    reporter.info(f"Averaged over {num_images} images.")
    return MapResult(options.output, num_images, list(attention.shape))


def _info(model: Transformer, options: AttentionMapOptions) -> dict[str, Any]:
    """What the map says of itself."""
    return {
        **provenance("vitcod dump-attn", options.checkpoint),
        "model_config": model_config(model).to_dict(),
        "num_prefix_tokens": model.num_prefix_tokens,
        "sparse": has_mask(model),
        "split": options.split,
        "transform": options.transform,
    }
