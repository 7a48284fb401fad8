"""Accuracy and loss of models, at any point between the steps; one alone, or several on the same images."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitcod_cli.artifacts.describe import describe
from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.data.waiting import Waiting
from vitcod_cli.distributed import on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation import accuracy as measuring
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.outcomes import compare
from vitcod_cli.evaluation.paired import paired_difference
from vitcod_cli.evaluation.programs import Program, is_program, load_program
from vitcod_cli.evaluation.report import EvaluationReport, ModelReport
from vitcod_cli.evaluation.results_file import add_results, check_results_file
from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import keep_mask, prepare_inference
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.steps.options import EvalOptions
from vitcod_cli.version import __version__


def evaluate(options: EvalOptions, reporter: Reporter = QUIET) -> Evaluation:
    """Acc@1, Acc@5 and loss of a checkpoint on one split; every image counts once, on one process or many.

    Raises:
        VitcodError: if options, weights and data don't go together, something can't be read, or there are several
            models.
    """
    if not options.is_of_one_model:
        raise VitcodError("evaluate takes one model; evaluate_models takes several.")
    return evaluate_models(options, reporter).models[0].evaluation


def evaluate_models(options: EvalOptions, reporter: Reporter = QUIET) -> EvaluationReport:
    """All models that ``options`` name, on the same images, which are read once.

    Raises:
        VitcodError: if options, weights and data don't go together, or something can't be read or written.
    """
    with start(options.runtime) as runtime:
        if options.results_file is not None:
            on_main(lambda: check_results_file(str(options.results_file)))
        subjects = _subjects(options, runtime, reporter)
        first = subjects[0]
        _check_alike(subjects)
        images = open_dataset(options.data, options.split, num_classes=first.classes, reporter=reporter)
        if not images.labelled and options.is_of_one_model:
            raise VitcodError(
                "--dataset images has no labels to evaluate by; name a model to agree with (--against "
                "CHECKPOINT), or give labelled images."
            )
        loader = Waiting(
            eval_loader(
                images,
                first.preprocess,
                batch_size=options.batch_size,
                workers=options.data.workers,
                device=runtime.device,
                reporter=reporter,
            )
        )
        runtime.advise(reporter)
        begun = time.monotonic()
        networks = [_network(subject, first, runtime) for subject in subjects]
        if options.is_of_one_model:
            models = [first.report(measuring.evaluate(networks[0], loader, runtime, reporter))]
        else:
            models = _compared(subjects, networks, loader, images, runtime=runtime, reporter=reporter)
        seconds = time.monotonic() - begun
        about = _about(options, first.preprocess, images, runtime)
        about["images_per_second"] = round(models[0].evaluation.images / seconds, 1)
        report = EvaluationReport(models, options.is_of_one_model, images.labelled, about)
        if options.results_file is not None:
            on_main(lambda: add_results(str(options.results_file), report))
    reporter.info(f"The model waited {loader.share:.0%} of the time for images.")
    return report


@dataclass(frozen=True)
class _Subject:
    """A model that is evaluated.

    Attributes:
        classes: of its logits; None where that isn't known.
    """

    name: str
    network: VisionTransformer | Program
    preprocess: Preprocess
    classes: int | None
    about: dict[str, Any]

    def report(self, evaluation: Evaluation, **against: Any) -> ModelReport:
        return ModelReport(self.name, self.about, evaluation, **against)


def _subjects(options: EvalOptions, runtime: Runtime, reporter: Reporter) -> list[_Subject]:
    """The models, the reference first."""
    asked = [(options.model, "--checkpoint", checkpoint, mask) for checkpoint, mask in options.pairs]
    if options.against is not None:
        asked.insert(0, (ModelSettings(), "--against", options.against, None))
    names = _names([(checkpoint, mask) for _, _, checkpoint, mask in asked])
    return [
        _program(name, options, flag, checkpoint, mask)
        if is_program(checkpoint)
        else _model(name, settings, flag, checkpoint, mask, options=options, reporter=reporter)
        for name, (settings, flag, checkpoint, mask) in zip(names, asked, strict=True)
    ]


def _model(
    name: str,
    settings: ModelSettings,
    flag: str,
    checkpoint: str,
    mask: str | None,
    *,
    options: EvalOptions,
    reporter: Reporter,
) -> _Subject:
    if flag == "--against":  # a file that doesn't say what it holds: perhaps what --model says
        settings = settings.changed(model=options.model.model) if _says_nothing(checkpoint) else settings
    model = load_model(settings, checkpoint, flag=flag, reporter=reporter, mask=mask)
    keep, config = keep_mask(model), model_config(model)
    about = {
        **_files(checkpoint, mask),
        "sparsity": 0.0 if keep is None else sparsity_of(keep.numpy()),
        "svd_type": config.svd_type,
        "model_config": config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return _Subject(name, model, preprocess_of(model, options.data), model.num_classes, about)


def _says_nothing(checkpoint: str) -> bool:
    """Whether a checkpoint can't name its model: only ours do without a doubt."""
    description = describe(checkpoint) if Path(checkpoint).is_file() else None
    return description is None or not description.own


def _program(name: str, options: EvalOptions, flag: str, path: str, mask: str | None) -> _Subject:
    if mask is not None:
        raise VitcodError(f"--mask can't be put into the program {flag} {path}; export it with its mask.")
    program = load_program(path, flag, trusted=options.trust_program)
    config = program.info.get("model_config")
    config = config if isinstance(config, dict) else {}
    classes = config.get("num_classes")
    about = {
        **_files(path, None),
        "sparsity": program.sparsity or 0.0,
        "svd_type": config.get("svd_type", "none"),
        "model_config": config,
        "parameters": None,
    }
    return _Subject(
        name, program, program.preprocess_with(options.data), classes if isinstance(classes, int) else None, about
    )


def _files(checkpoint: str, mask: str | None) -> dict[str, Any]:
    def checksum(path: str | None) -> str | None:
        return sha256_of(path) if path is not None and Path(path).is_file() else None

    return {
        "checkpoint": checkpoint,
        "sha256": checksum(checkpoint),
        "mask": mask,
        "mask_sha256": checksum(mask),
    }


def _names(pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Short names that tell all of ``pairs`` apart: the last parts of their paths, as many as it takes."""
    paths = [Path(f"{checkpoint} + {Path(mask).name}" if mask else checkpoint) for checkpoint, mask in pairs]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path}" for number, path in enumerate(paths, 1)]


def _check_alike(subjects: Sequence[_Subject]) -> None:
    """Raise a VitcodError if the models can't be shown the same images, or choose among other classes."""
    first = subjects[0]
    for other in subjects[1:]:
        mine, theirs = first.preprocess, other.preprocess
        size, others = mine.input_size, theirs.input_size
        if size != others or mine.crop_pct != theirs.crop_pct:
            raise VitcodError(
                f"{first.name} takes images of {size[1]}x{size[2]} pixels in {size[0]} channels, a crop of "
                f"{mine.crop_pct:g}, and {other.name} {others[1]}x{others[2]} in {others[0]}, "
                f"{theirs.crop_pct:g}: they can't be compared on the same images; evaluate them in calls of "
                "their own."
            )
        if None not in (first.classes, other.classes) and first.classes != other.classes:
            raise VitcodError(
                f"{first.name} has {first.classes} classes and {other.name} {other.classes}; only models of the "
                "same classes can be compared."
            )


def _network(subject: _Subject, first: _Subject, runtime: Runtime) -> nn.Module:
    """The model, ready to run on the images that the first one takes."""
    network: nn.Module = runtime.prepare(subject.network).eval()
    if isinstance(subject.network, VisionTransformer):
        prepare_inference(subject.network, runtime.dtype)
        network = runtime.compiled(subject.network)
    renormalise = Renormalise(first.preprocess, subject.preprocess)
    return nn.Sequential(renormalise.to(runtime.device), network).eval() if renormalise.needed else network


def _compared(
    subjects: Sequence[_Subject],
    networks: Sequence[nn.Module],
    loader: Waiting[tuple[Tensor, Tensor]],
    images: ImageData,
    *,
    runtime: Runtime,
    reporter: Reporter,
) -> list[ModelReport]:
    outcomes = compare(networks, loader, runtime, reporter, labelled=images.labelled, description="eval")
    reference = outcomes[0]
    reports = []
    for subject, own in zip(subjects, outcomes, strict=True):
        difference = None
        if own is not reference:
            difference = paired_difference(own.hit1, reference.hit1, own.loss, reference.loss)
        reports.append(subject.report(own.evaluation, agreement=own.agreement, kl=own.kl, difference=difference))
    return reports


def _about(options: EvalOptions, preprocess: Preprocess, images: ImageData, runtime: Runtime) -> dict[str, Any]:
    """What the figures depend on beside the models, as plain values."""
    data = options.data
    return {
        "precision": str(runtime.dtype).removeprefix("torch."),
        "device": runtime.device.type,
        "input_size": list(preprocess.input_size),
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "crop_pct": preprocess.crop_pct,
        "interpolation": preprocess.interpolation,
        "data": {
            "path": data.data_path,
            "dataset": data.dataset or "ImageNet layout",
            "split": options.split,
            "labelled": images.labelled,
        },
        "versions": {
            "vitcod": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
    }
