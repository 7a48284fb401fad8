"""``vitcod bench --masks``: at which size and sparsity a mask pays on this machine."""

from __future__ import annotations

from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.bench.counting import count
from vitcod_cli.bench.environment import environment
from vitcod_cli.bench.masks_report import MasksReport, MaskTimes
from vitcod_cli.bench.measure import measure
from vitcod_cli.bench.report import FIRST, UNMASKED
from vitcod_cli.bench.settings import BenchOptions
from vitcod_cli.bench.workload import without_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.programs import is_program
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer, image_size, num_tokens
from vitcod_cli.model.layers import attentions, check_masked
from vitcod_cli.model.load import load_model, put_mask
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime


def bench_masks(options: BenchOptions, runtime: Runtime, reporter: Reporter) -> MasksReport:
    """Time the model under each mask against itself without one, forward passes alone.

    All masks are tried on the model before the first is timed; one after the other is in memory.

    Raises:
        VitcodError: if the model can't be loaded, or a mask isn't for it.
    """
    if options.checkpoint is not None and is_program(options.checkpoint):
        raise VitcodError(f"--masks can't be put into the program {options.checkpoint}; take its checkpoint.")
    options = options.changed(training=False)
    for path in options.masks:
        model = _masked(options, path, reporter)
        check_masked(options.attention, [model])
    name, found = model_config(model).model, []
    del model
    for number, path in enumerate(options.masks, 1):
        reporter.info(f"Mask {number} of {len(options.masks)}: {path}")
        found.append(_times(runtime.prepare(_masked(options, path, QUIET)), path, options, runtime, reporter))
    source = options.checkpoint or "random weights"
    return MasksReport(f"{name}, {source}", {**environment(runtime), "attention": options.attention}, found)


def _times(
    model: Transformer, path: str, options: BenchOptions, runtime: Runtime, reporter: Reporter
) -> MaskTimes:
    return MaskTimes(
        mask=path,
        img_size=image_size(model),
        tokens=num_tokens(model),
        sparsity=_sparsity(model),
        saved_share=count(model).saved_share,
        results=measure({FIRST: model, UNMASKED: without_mask(model)}, options, runtime, reporter),
    )


def _sparsity(model: Transformer) -> float:
    """Of its mask: the share of all entries that is pruned."""
    kept = [layer.keep.float().mean().item() for layer in attentions(model) if layer.keep is not None]
    return 1 - sum(kept) / len(kept)


def _masked(options: BenchOptions, path: str, reporter: Reporter) -> Transformer:
    """The model under a mask, at the image size that the mask says it is for."""
    settings, mask = options.model, read_mask(path, "--masks")
    size = mask.info.get("model_config", {}).get("img_size")
    if size is not None and settings.img_size is None:
        height, width = size
        if height == width:
            settings = settings.changed(img_size=height)
    model = load_model(settings, options.checkpoint, flag="--checkpoint", reporter=reporter)
    put_mask(model, mask, f"--masks {path}", reporter)
    return model
