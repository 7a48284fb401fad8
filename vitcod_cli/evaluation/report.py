"""What ``eval`` has found: one model or several, as a line, a table and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.paired import PairedDifference, accuracy_interval
from vitcod_cli.evaluation.table import model_table


@dataclass(frozen=True)
class ModelReport:
    """One model.

    Attributes:
        name: short, for tables; no two are alike.
        about: what it is: checkpoint, mask, their checksums, sparsity, architecture, number of parameters; and of
            what the report says of all models, what is otherwise for this one.
        agreement, kl, difference: against the reference; None where the model was alone.
    """

    name: str
    about: Mapping[str, Any]
    evaluation: Evaluation
    agreement: float | None = None
    kl: float | None = None
    difference: PairedDifference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat."""
        low, high = accuracy_interval(self.evaluation.acc1, self.evaluation.images)
        return {
            **self.evaluation.to_dict(),
            "acc1_low": low,
            "acc1_high": high,
            **self.about,
            "agreement": self.agreement,
            "kl": self.kl,
            "difference": None if self.difference is None else self.difference.to_dict(),
        }


@dataclass(frozen=True)
class EvaluationReport:
    """All models of one call, on the same images.

    Attributes:
        models: the reference first, where there are several.
        alone: whether one model was asked for, and nothing to compare it with.
        labelled: without labels, Acc@1 is agreement with the reference.
        about: precision, device, how images were made, data, versions.
    """

    models: Sequence[ModelReport]
    alone: bool
    labelled: bool
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: of one model alone flat, else ``models`` beside what they share."""
        if self.alone:
            only = self.models[0].to_dict()
            return {**only, **{name: value for name, value in self.about.items() if name not in only}}
        return {"models": [{"name": model.name, **model.to_dict()} for model in self.models], **self.about}

    def lines(self) -> list[str]:
        """The published code's line of one model alone; else a table of at most 80 columns."""
        if self.alone:
            return [self.models[0].evaluation.line()]
        columns = self._labelled_columns() if self.labelled else self._unlabelled_columns()
        return model_table([model.name for model in self.models], columns, self._footnote())

    def _labelled_columns(self) -> list[list[str]]:
        """Texts of each column, its head first."""
        models = self.models
        differences = [model.difference for model in models]
        return [
            ["sparse", *map(_sparsity, models)],
            ["Acc@1", *(f"{model.evaluation.acc1:.2f}" for model in models)],
            ["Acc@5", *(f"{model.evaluation.acc5:.2f}" for model in models)],
            ["loss", *(_number(model.evaluation.loss) for model in models)],
            ["agree", *(f"{model.agreement or 0:.1f}" for model in models)],
            ["to first [95 %]", *("" if one is None else str(one) for one in differences)],
            ["p", *("" if one is None else one.probability for one in differences)],
        ]

    def _unlabelled_columns(self) -> list[list[str]]:
        models = self.models
        intervals = [accuracy_interval(model.agreement or 0, model.evaluation.images) for model in models]
        return [
            ["sparse", *map(_sparsity, models)],
            ["agree", *(f"{model.agreement or 0:.2f}" for model in models)],
            ["[95 %]", "", *(f"[{low:.1f}, {high:.1f}]" for low, high in intervals[1:])],
            ["loss", *(_number(model.evaluation.loss) for model in models)],
            ["KL", *(_number(model.kl or 0) for model in models)],
        ]

    def _footnote(self) -> str:
        images = self.models[0].evaluation.images
        if not self.labelled:
            return (
                f"On {images} images without labels; agree: percent for which the first choice is that of the "
                "first model, with Wilson's 95 % interval; the loss is against that choice, KL the divergence "
                "from its probabilities, in nats."
            )
        return (
            f"On {images} images. agree: percent with the first choice of the first model; to first: points of "
            "Acc@1 on the same images, with the 95 % interval of Agresti and Min; p: McNemar's exact test, the "
            "probability of such a difference between models that are equally good."
        )


def _sparsity(model: ModelReport) -> str:
    return f"{model.about.get('sparsity') or 0.0:.1%}"


def _number(value: float) -> str:
    """Three decimals, of what isn't huge."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.2e}"
