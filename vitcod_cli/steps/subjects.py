"""The models that one evaluation looks at: checkpoints and exported programs, each read and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.names import names_of
from vitcod_cli.evaluation.programs import Program, is_program, load_program
from vitcod_cli.evaluation.report import ModelReport
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import mask_sparsity
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import Reporter
from vitcod_cli.steps.options import EvalOptions


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
        name: that reports call it by.
        network: as it was read, on the CPU.
        preprocess: which images it takes.
        classes: of its head; 0 if it gives features.
        about: what reports say of it, as plain values: files, checksums, sparsity, architecture.
        config: its architecture; None of a program that doesn't say it.
    """

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
        """Its figures, with what reports say of it; ``against``: those beside the reference."""
        return ModelReport(self.name, self.about, evaluation, **against)


def subjects_of(options: EvalOptions, reporter: Reporter) -> list[Subject]:
    """The models that ``options`` name, read; the reference first, if there is one.

    Raises:
        VitcodError: if one can't be read, or a choice of ``options`` isn't for it.
    """
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
) -> Subject:
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
    return Subject(name, model, preprocess_of(model, options.data), model.num_classes, about, config)


def _program(name: str, options: EvalOptions, flag: str, path: str, mask: str | None) -> Subject:
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
    return Subject(name, program, program.preprocess_with(options.data), classes, about, config)


def _files(checkpoint: str, mask: str | None) -> dict[str, Any]:
    def checksum(path: str | None) -> str | None:
        return sha256_of(path) if path is not None and Path(path).is_file() else None

    return {
        "checkpoint": checkpoint,
        "sha256": checksum(checkpoint),
        "mask": mask,
        "mask_sha256": checksum(mask),
    }


def check_choices(subjects: Sequence[Subject], options: EvalOptions) -> None:
    """Raise a VitcodError if a model that gives features, and chooses nothing, has none to be compared with."""
    features = next((subject for subject in subjects if not subject.classes), None)
    if features is None:
        return
    if options.is_of_one_model:
        raise VitcodError(
            f"{features.name} has no classes to choose from, it gives features; name the model whose features "
            "they should be (--against CHECKPOINT), or evaluate it with its head (without --num-classes 0)."
        )


def check_alike(subjects: Sequence[Subject], *, features: bool) -> None:
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
