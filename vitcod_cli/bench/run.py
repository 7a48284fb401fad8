"""``vitcod bench``: load, count and measure; the models that are compared."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from vitcod_cli.bench.counting import count
from vitcod_cli.bench.environment import environment
from vitcod_cli.bench.measure import measure
from vitcod_cli.bench.report import FIRST, OTHER, UNMASKED, Report
from vitcod_cli.bench.settings import TIMM, BenchOptions
from vitcod_cli.bench.workload import DROP_PATH, timm_twin, without_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import keep_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import start


def bench(options: BenchOptions, reporter: Reporter) -> Report:
    """Count a model's arithmetic, and measure its time and memory on this machine.

    Raises:
        VitcodError: if the model can't be loaded, or has nothing to train.
    """
    with start(options.runtime) as runtime:
        model = load_model(
            options.model,
            options.checkpoint,
            flag="--checkpoint",
            drop_path=DROP_PATH,
            reporter=reporter,
            mask=options.mask,
        )
        models = _models(runtime.prepare(model), options.against, reporter)
        if options.training and not all(one.num_classes for one in models.values()):
            raise VitcodError("A model of 0 classes has nothing to train; add --no-training.")
        runtime.advise(reporter)
        counts = {name: count(runtime.prepare(one)) for name, one in models.items()}
        return Report(
            about=_about(models, options),
            environment=environment(runtime),
            counts=counts,
            results=measure(models, options, runtime, reporter),
        )


def _models(model: VisionTransformer, against: str | None, reporter: Reporter) -> dict[str, VisionTransformer]:
    """All that is timed, by name: the model, itself without its mask, and what ``--against`` names."""
    models = {FIRST: model}
    if keep_mask(model) is not None:
        models[UNMASKED] = without_mask(model)
    if against == TIMM:
        models[TIMM] = timm_twin(model)
    elif against is not None:
        models[OTHER] = load_model(
            ModelSettings(),
            against,
            flag="--against",
            drop_path=DROP_PATH,
            reporter=reporter,
            like=model_config(model),
        )
    return models


def _about(models: dict[str, VisionTransformer], options: BenchOptions) -> dict[str, dict[str, Any]]:
    """Of each model, what it is and where it came from."""
    sources = {FIRST: options.checkpoint, UNMASKED: options.checkpoint, OTHER: options.against, TIMM: "timm's own"}
    return {
        name: {
            "source": sources[name] or "random weights",
            "mask": _mask_source(model, options.mask if name == FIRST else None),
            "tokens": model.patch_embed.num_patches + model.num_prefix_tokens,
            **model_config(model).to_dict(),
        }
        for name, model in models.items()
    }


def _mask_source(model: VisionTransformer, file: str | None) -> str | None:
    return (file or "of the checkpoint") if keep_mask(model) is not None else None
