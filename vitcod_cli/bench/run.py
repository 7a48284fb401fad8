"""``vitcod bench``: load, count and measure; the models that are compared."""

from __future__ import annotations

from typing import Any

from vitcod_cli.bench.counting import count
from vitcod_cli.bench.environment import environment
from vitcod_cli.bench.masks import bench_masks
from vitcod_cli.bench.masks_report import MasksReport
from vitcod_cli.bench.measure import Subject, measure
from vitcod_cli.bench.report import FIRST, OTHER, UNMASKED, Report
from vitcod_cli.bench.settings import TIMM, BenchOptions
from vitcod_cli.bench.workload import DROP_PATH, timm_twin, without_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.programs import Program, is_program, load_program
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer, num_tokens
from vitcod_cli.model.layers import check_masked, has_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime, start


def bench(options: BenchOptions, reporter: Reporter) -> Report | MasksReport:
    """Count a model's arithmetic, and measure its time and memory on this machine; or the time under each mask.

    Raises:
        VitcodError: if the model can't be loaded, or has nothing to train.
    """
    with start(options.runtime) as runtime:
        if options.masks:
            return bench_masks(options, runtime, reporter)
        models = _models(options, runtime, reporter)
        options = _without_training(options, models, reporter)
        networks = [one for one in models.values() if isinstance(one, Transformer)]
        check_masked(options.attention, networks)
        if options.training and not all(one.num_classes for one in networks):
            raise VitcodError("A model of 0 classes has nothing to train; add --no-training.")
        counts = {
            name: count(runtime.prepare(one)) for name, one in models.items() if isinstance(one, Transformer)
        }
        return Report(
            about=_about(models, options),
            environment={**environment(runtime), "attention": options.attention},
            counts=counts,
            results=measure(models, options, runtime, reporter),
        )


def _models(options: BenchOptions, runtime: Runtime, reporter: Reporter) -> dict[str, Subject]:
    """All that is timed, by name: the model, itself without its mask, and what ``--against`` names."""
    first = _first(options, runtime, reporter)
    models = {FIRST: first}
    network = first if isinstance(first, Transformer) else None
    if network is not None and has_mask(network):
        models[UNMASKED] = without_mask(network)
    if options.against == TIMM:
        if network is None:
            raise VitcodError("--against timm needs a checkpoint as --checkpoint, not an exported program.")
        models[TIMM] = timm_twin(network)
    elif options.against is not None and is_program(options.against):
        models[OTHER] = _program(options.against, "--against", options, runtime)
    elif options.against is not None:
        models[OTHER] = load_model(
            ModelSettings(),
            options.against,
            flag="--against",
            drop_path=DROP_PATH,
            reporter=reporter,
            like=first.config if isinstance(first, Program) else model_config(first),
        )
    return models


def _first(options: BenchOptions, runtime: Runtime, reporter: Reporter) -> Subject:
    if options.checkpoint is not None and is_program(options.checkpoint):
        if options.mask is not None:
            raise VitcodError(
                f"--mask can't be put into the program {options.checkpoint}; export it with its mask."
            )
        return _program(options.checkpoint, "--checkpoint", options, runtime)
    model = load_model(
        options.model,
        options.checkpoint,
        flag="--checkpoint",
        drop_path=DROP_PATH,
        reporter=reporter,
        mask=options.mask,
    )
    return runtime.prepare(model)


def _program(path: str, flag: str, options: BenchOptions, runtime: Runtime) -> Program:
    if runtime.device.type != "cpu":
        raise VitcodError(f"{flag} {path} is a program, which runs on the CPU here; give --device cpu.")
    return load_program(path, flag, trusted=options.trust_program, settings=options.model)


def _without_training(options: BenchOptions, models: dict[str, Subject], reporter: Reporter) -> BenchOptions:
    """Programs can't be trained, and one of a fixed batch is timed with that alone."""
    programs = [one for one in models.values() if isinstance(one, Program)]
    if not programs:
        return options
    if options.training:
        reporter.info("An exported program has no training step: forward passes alone.")
    fixed = {one.batch_size for one in programs if one.batch_size is not None}
    if len(fixed) > 1:
        raise VitcodError("The programs have other batch sizes; bench them in calls of their own.")
    sizes = list(fixed) or options.batch_sizes
    if sizes != options.batch_sizes:
        reporter.info(f"The program takes batches of {sizes[0]}, whatever --batch-size says.")
    return options.changed(training=False, batch_size=sizes)


def _about(models: dict[str, Subject], options: BenchOptions) -> dict[str, dict[str, Any]]:
    """Of each model, what it is and where it came from."""
    sources = {FIRST: options.checkpoint, UNMASKED: options.checkpoint, OTHER: options.against, TIMM: "timm's own"}
    return {
        name: {
            "source": sources[name] or "random weights",
            **(_of_program(model) if isinstance(model, Program) else _of_model(model, name, options)),
        }
        for name, model in models.items()
    }


def _of_model(model: Transformer, name: str, options: BenchOptions) -> dict[str, Any]:
    return {
        "mask": _mask_source(model, options.mask if name == FIRST else None),
        "tokens": num_tokens(model),
        **model_config(model).to_dict(),
    }


def _of_program(program: Program) -> dict[str, Any]:
    return {
        "mask": None if program.sparsity is None else f"of {program.sparsity:.1%} in the program",
        "tokens": None,
        "model": "a program" if program.config is None else program.config.model,
        "img_size": list(program.preprocess.input_size[1:]),
    }


def _mask_source(model: Transformer, file: str | None) -> str | None:
    return (file or "of the checkpoint") if has_mask(model) else None
