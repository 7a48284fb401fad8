"""Accuracy and loss of models, at any point between the steps; one alone, or several on the same images."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.provenance import versions
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.data.waiting import Waiting
from vitcod_cli.distributed import gather_objects, on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation import accuracy as measuring
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.extractor import FeatureExtractor
from vitcod_cli.evaluation.feature_comparison import compare_features
from vitcod_cli.evaluation.features_report import FeatureModel, FeaturesReport
from vitcod_cli.evaluation.names import names_of
from vitcod_cli.evaluation.outcomes import compare
from vitcod_cli.evaluation.paired import paired_difference
from vitcod_cli.evaluation.programs import Program, is_program, load_program
from vitcod_cli.evaluation.report import EvaluationReport, ModelReport
from vitcod_cli.evaluation.results_file import COLUMNS, FEATURE_COLUMNS, add_results, check_results_file
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import check_masked, mask_sparsity, prepare_inference
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.steps.options import EvalOptions


def evaluate(options: EvalOptions, reporter: Reporter = QUIET) -> Evaluation:
    """Acc@1, Acc@5 and loss of a checkpoint on one split; every image counts once, on one process or many.

    Raises:
        VitcodError: if options, weights and data don't go together, something can't be read, or there are several
            models.
    """
    if not options.is_of_one_model:
        raise VitcodError("evaluate takes one model; evaluate_models takes several.")
    report = evaluate_models(options, reporter)
    assert isinstance(report, EvaluationReport)  # one without classes has been refused
    return report.models[0].evaluation


def evaluate_models(options: EvalOptions, reporter: Reporter = QUIET) -> EvaluationReport | FeaturesReport:
    """All models that ``options`` name, on the same images, which are read once.

    Raises:
        VitcodError: if options, weights and data don't go together, or something can't be read or written.
    """
    with start(options.runtime) as runtime:
        results_file = options.results_file
        if results_file is not None:
            kinds = (FEATURE_COLUMNS,) if options.features else (COLUMNS, FEATURE_COLUMNS)
            on_main(lambda: check_results_file(results_file, *kinds))
        subjects = _subjects(options, runtime, reporter)
        first = subjects[0]
        _check_choices(subjects, options)
        by_features = options.features or not first.classes
        _check_alike(subjects, features=options.features)
        check_masked(options.attention, [one.network for one in subjects])
        if results_file is not None:
            columns = FEATURE_COLUMNS if by_features else COLUMNS
            on_main(lambda: check_results_file(results_file, columns))
        classes = 0 if by_features else first.classes
        images = open_dataset(options.data, options.split, num_classes=classes, reporter=reporter)
        if not by_features and not images.labelled and options.is_of_one_model:
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
        reporter.info(_crop(first))
        networks = [_network(subject, first, options, runtime, by_features=by_features) for subject in subjects]
        begun = time.monotonic()

        def about(count: int) -> dict[str, Any]:
            seconds = time.monotonic() - begun
            shared = _about(options, subjects, images, runtime)
            shared["data"]["images"] = count
            return {**shared, "images_per_second": round(count / seconds, 1)}

        report: EvaluationReport | FeaturesReport
        if by_features:
            found = compare_features(networks, loader, runtime, reporter)
            features = [FeatureModel(one.name, one.about, own) for one, own in zip(subjects, found, strict=True)]
            report = FeaturesReport(features, about(found[0].images))
        else:
            if options.is_of_one_model:
                models = [first.report(measuring.evaluate(networks[0], loader, runtime, reporter))]
            else:
                models = _compared(subjects, networks, loader, images, runtime=runtime, reporter=reporter)
            shared = about(models[0].evaluation.images)
            report = EvaluationReport(models, options.is_of_one_model, images.labelled, shared)
        if results_file is not None:
            on_main(lambda: add_results(results_file, report))
    reporter.info(f"The model waited {loader.share:.0%} of the time for images.")
    return report


def _crop(subject: _Subject) -> str:
    """How images are cropped, and whether timm would do it otherwise: results differ by some tenths."""
    crop = subject.preprocess.crop_pct
    own = (getattr(subject.network, "pretrained_cfg", None) or {}).get("crop_pct", crop)
    other = "" if math.isclose(own, crop) else f"; timm's of this model is {own:g} (--crop-pct {own:g})"
    height, width = subject.preprocess.input_size[1:]
    return f"Images: {height}x{width}, the middle {crop:.3g} of the picture{other}."


@dataclass(frozen=True)
class _Subject:
    """A model that is evaluated."""

    name: str
    network: Transformer | Program
    preprocess: Preprocess
    classes: int
    about: dict[str, Any]
    config: ModelConfig | None

    @property
    def width(self) -> int:
        """Of its pooled feature; of a program, of whatever it gives."""
        network = self.network
        return network.outputs if isinstance(network, Program) else int(network.head_hidden_size)

    def report(self, evaluation: Evaluation, **against: Any) -> ModelReport:
        return ModelReport(self.name, self.about, evaluation, **against)


def _subjects(options: EvalOptions, runtime: Runtime, reporter: Reporter) -> list[_Subject]:
    """The models, the reference first."""
    names = names_of(options.pairs, options.against)
    subjects = [
        _program(name, options, "--checkpoint", checkpoint, mask)
        if is_program(checkpoint)
        else _model(name, options, "--checkpoint", checkpoint, mask, reporter=reporter)
        for name, (checkpoint, mask) in zip(names[-len(options.pairs) :], options.pairs, strict=True)
    ]
    against = options.against
    if against is None:
        return subjects
    if is_program(against):
        return [_program(names[0], options, "--against", against, None), *subjects]
    like = next((one.config for one in subjects if one.config is not None), None)
    return [_model(names[0], options, "--against", against, None, reporter=reporter, like=like), *subjects]


def _model(
    name: str,
    options: EvalOptions,
    flag: str,
    checkpoint: str,
    mask: str | None,
    *,
    reporter: Reporter,
    like: ModelConfig | None = None,
) -> _Subject:
    """``like``: for a reference, which has nothing from ``--model``; see :func:`load_model`."""
    features = like is not None and not like.num_classes  # then so does the reference, whatever its file has
    settings = options.model if flag == "--checkpoint" else ModelSettings(num_classes=0 if features else None)
    model = load_model(settings, checkpoint, flag=flag, reporter=reporter, mask=mask, like=like)
    config = model_config(model)
    about = {
        **_files(checkpoint, mask),
        "sparsity": mask_sparsity(model),
        "svd_type": config.svd_type,
        "model_config": config.to_dict(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return _Subject(name, model, preprocess_of(model, options.data), model.num_classes, about, config)


def _program(name: str, options: EvalOptions, flag: str, path: str, mask: str | None) -> _Subject:
    if mask is not None:
        raise VitcodError(f"--mask can't be put into the program {flag} {path}; export it with its mask.")
    program = load_program(path, flag, trusted=options.trust_program, settings=options.model)
    config = program.config
    # A file that doesn't say what it gives is believed to be what the user says.
    classes = 0 if config is None and options.model.num_classes == 0 else program.classes
    if options.features and classes:
        raise VitcodError(
            f"--features can't judge the program {flag} {path}: it gives logits, not features. Export the model "
            "without its head (vitcod export --num-classes 0), or give its checkpoint."
        )
    about = {
        **_files(path, None),
        "sparsity": program.sparsity or 0.0,
        "svd_type": None if config is None else config.svd_type,
        "model_config": None if config is None else config.to_dict(),
        "parameters": None,
        # Whatever the models beside it do.
        "precision": "float32",
        "device": "cpu",
    }
    return _Subject(name, program, program.preprocess_with(options.data), classes, about, config)


def _files(checkpoint: str, mask: str | None) -> dict[str, Any]:
    def checksum(path: str | None) -> str | None:
        return sha256_of(path) if path is not None and Path(path).is_file() else None

    return {
        "checkpoint": checkpoint,
        "sha256": checksum(checkpoint),
        "mask": mask,
        "mask_sha256": checksum(mask),
    }


def _check_choices(subjects: Sequence[_Subject], options: EvalOptions) -> None:
    """Raise a VitcodError if a model that gives features, and chooses nothing, has none to be compared with."""
    features = next((subject for subject in subjects if not subject.classes), None)
    if features is None:
        return
    if options.is_of_one_model:
        raise VitcodError(
            f"{features.name} has no classes to choose from, it gives features; name the model whose features "
            "they should be (--against CHECKPOINT), or evaluate it with its head (without --num-classes 0)."
        )


def _check_alike(subjects: Sequence[_Subject], *, features: bool) -> None:
    """Raise a VitcodError if the models can't be shown the same images, or what they give can't be compared.

    Args:
        features: whether that is features, whatever there are of heads.
    """
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
        if first.classes != other.classes and not features:
            raise VitcodError(
                f"{first.name} has {first.classes} classes and {other.name} {other.classes}; only models of the "
                "same classes can be compared by their choices; --features compares their features."
            )
        if first.width != other.width and (features or not first.classes):
            raise VitcodError(
                f"{first.name} gives {first.width} features and {other.name} {other.width}; they can't be "
                "compared."
            )


def _network(
    subject: _Subject, first: _Subject, options: EvalOptions, runtime: Runtime, *, by_features: bool
) -> nn.Module:
    """The model, ready to run on the images that the first one takes, to what it is judged by."""
    network: nn.Module = runtime.prepare(subject.network).eval()
    if by_features:
        network = FeatureExtractor(network).eval()
    if isinstance(subject.network, Transformer):
        prepare_inference(subject.network, runtime.dtype, options.attention)
        network = runtime.compiled(network)
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
        if own is not reference and images.labelled:
            difference = paired_difference(own.hit1, reference.hit1, own.loss, reference.loss)
        reports.append(subject.report(own.evaluation, agreement=own.agreement, kl=own.kl, difference=difference))
    return reports


def _about(
    options: EvalOptions, subjects: Sequence[_Subject], images: ImageData, runtime: Runtime
) -> dict[str, Any]:
    """What the figures depend on beside the models, as plain values."""
    data, preprocess = options.data, subjects[0].preprocess
    unreadable = {image for process in gather_objects(list(images.bad_images.reasons)) for image in process}
    programs = [one.network for one in subjects if isinstance(one.network, Program)]
    return {
        "precision": str(runtime.dtype).removeprefix("torch."),
        "device": runtime.device.type,
        "attention": options.attention,
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
            "unreadable": len(unreadable),
        },
        "versions": {
            **versions(),
            "python": platform.python_version(),
            **{name: number for program in programs for name, number in program.versions.items()},
        },
    }
