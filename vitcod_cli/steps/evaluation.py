"""Accuracy and loss of models, at any point between the steps; one alone, or several on the same images."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vitcod_cli.artifacts.provenance import versions
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.data.waiting import Waiting
from vitcod_cli.distributed import gather_objects, on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation import accuracy as measuring
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.extractor import FeatureExtractor
from vitcod_cli.evaluation.feature_comparison import compare_features
from vitcod_cli.evaluation.features_report import FeatureModel, FeaturesReport
from vitcod_cli.evaluation.outcomes import compare
from vitcod_cli.evaluation.paired import paired_difference
from vitcod_cli.evaluation.programs import Program
from vitcod_cli.evaluation.report import EvaluationReport, ModelReport
from vitcod_cli.evaluation.results_file import COLUMNS, FEATURE_COLUMNS, add_results, check_results_file
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import check_masked, prepare_inference
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.steps.options import EvalOptions
from vitcod_cli.steps.subjects import Subject, check_alike, check_choices, subjects_of


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
        subjects = subjects_of(options, reporter)
        first = subjects[0]
        check_choices(subjects, options)
        by_features = options.features or not first.classes
        check_alike(subjects, features=options.features)
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


def _crop(subject: Subject) -> str:
    """How images are cropped, and whether timm would do it otherwise: results differ by some tenths."""
    crop = subject.preprocess.crop_pct
    own = (getattr(subject.network, "pretrained_cfg", None) or {}).get("crop_pct", crop)
    other = "" if math.isclose(own, crop) else f"; timm's of this model is {own:g} (--crop-pct {own:g})"
    height, width = subject.preprocess.input_size[1:]
    return f"Images: {height}x{width}, the middle {crop:.3g} of the picture{other}."


def _network(
    subject: Subject, first: Subject, options: EvalOptions, runtime: Runtime, *, by_features: bool
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
    subjects: Sequence[Subject],
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
    options: EvalOptions, subjects: Sequence[Subject], images: ImageData, runtime: Runtime
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
