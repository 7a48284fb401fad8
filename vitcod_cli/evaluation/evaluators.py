"""What training evaluates a model by: accuracy, agreement with another model, or nearness to its features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.accuracy import Evaluation, evaluate_all
from vitcod_cli.evaluation.features import FeatureEvaluation, compare_pooled
from vitcod_cli.evaluation.outcomes import LabelledBy
from vitcod_cli.evaluation.passes import evaluating
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

SCORES: tuple[type[Evaluation] | type[FeatureEvaluation], ...] = (Evaluation, FeatureEvaluation)
"""Every :class:`Score`."""


class Score(Protocol):
    """What a model is worth on the validation images."""

    @property
    def images(self) -> int:
        """How many there were."""

    @property
    def rank(self) -> tuple[float, ...]:
        """The larger the better."""

    def line(self) -> str:
        """For people."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the metrics by name, and ``images``."""


@dataclass(frozen=True)
class Reference:
    """A model that others are measured against.

    Attributes:
        name: for people: ``teacher``, or ``dense`` for the model as it was.
        model: takes images as those do; in eval mode, on the runtime's device.
    """

    name: str
    model: nn.Module


class Evaluator(Protocol):
    """Scores models on the same images, again and again.

    Attributes:
        beside: name and score of the reference on these images, once it was scored along with a model; None
            where the scores are relative to it already, or it wasn't asked for.
    """

    beside: tuple[str, Score] | None

    def __call__(self, model: nn.Module, description: str) -> Score:
        """The score of ``model``, whose training mode is restored; all processes call it together.

        Raises:
            VitcodError: if no process has an image that can be read.
        """


def line_of(score: Score, beside: tuple[str, Score] | None) -> str:
    """A score, and that of its reference where it is known."""
    return score.line() if beside is None else f"{score.line()} ({beside[0]}: {beside[1].line().lstrip('* ')})"


@dataclass
class AccuracyEvaluator:
    """Acc@1, Acc@5 and loss.

    Attributes:
        reference: scored along with the first model, for one pass over the images.
    """

    loader: Iterable[tuple[Tensor, Tensor]]
    runtime: Runtime
    reporter: Reporter
    reference: Reference | None = None
    beside: tuple[str, Score] | None = None

    def __call__(self, model: nn.Module, description: str) -> Evaluation:
        """See :class:`Evaluator`."""
        others = [] if self.reference is None or self.beside is not None else [self.reference]
        models = [model, *(other.model for other in others)]
        score, *theirs = evaluate_all(models, self.loader, self.runtime, self.reporter, description)
        for other, found in zip(others, theirs, strict=True):
            self.beside = other.name, found
        return score


@dataclass
class FeatureEvaluator:
    """Cosine and relative error of pooled features, of models without a head, beside those of ``reference``."""

    loader: Iterable[tuple[Tensor, Tensor]]
    runtime: Runtime
    reporter: Reporter
    reference: nn.Module
    beside: tuple[str, Score] | None = None

    def __call__(self, model: nn.Module, description: str) -> FeatureEvaluation:
        """See :class:`Evaluator`."""
        models = [self.reference, model]
        with evaluating(models):
            _, own = compare_pooled(models, self.loader, self.runtime, self.reporter, description)
        return own.evaluation


def evaluator_for(
    classes: int,
    loader: Iterable[tuple[Tensor, Tensor]],
    reference: Reference | None,
    *,
    labelled: bool,
    beside: bool,
    runtime: Runtime,
    reporter: Reporter,
) -> Evaluator:
    """By accuracy where there are classes and labels, else by agreement with the reference, or its features.

    Args:
        classes: of the models to be scored; 0 without a head.
        labelled: whether the targets of ``loader`` mean anything.
        beside: where they do, whether the reference is scored, too.

    Raises:
        VitcodError: if the reference is needed and there is none.
    """
    shared: dict[str, Any] = {"runtime": runtime, "reporter": reporter}
    if classes and labelled:
        return AccuracyEvaluator(loader, **shared, reference=reference if beside else None)
    if reference is None:
        what = (
            "--dataset images has no labels to evaluate by" if classes else "The model has no head to evaluate by"
        )
        way_on = "labelled images" if classes else "take it with its head"
        raise VitcodError(
            f"{what}, and there is no other model to compare with; give --distill-from CHECKPOINT, or {way_on}."
        )
    if not classes:
        reporter.info(
            "The model has no head: it is judged by its pooled features, beside those of the teacher, or else of "
            "the model as it was: the cosine of the two, and the error, their distance as a share of the length. "
            "Labels aren't looked at."
        )
        return FeatureEvaluator(loader, **shared, reference=reference.model)
    reporter.info(
        "The validation images have no labels: Acc@1 is agreement with the teacher, or else with the model as it "
        "was: the share of images for which both choose the same class. The loss is against that choice, too."
    )
    return AccuracyEvaluator(LabelledBy(loader, reference.model, runtime), **shared)
