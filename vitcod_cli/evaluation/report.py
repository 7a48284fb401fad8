"""What ``eval`` has found: one model or several, as a line, a table and plain values."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.paired import PairedDifference, accuracy_interval

_WIDTH = 80


@dataclass(frozen=True)
class ModelReport:
    """One model.

    Attributes:
        name: short, for tables; no two are alike.
        about: what it is: checkpoint, mask, their checksums, sparsity, architecture, number of parameters.
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
            return {**self.models[0].to_dict(), **self.about}
        return {"models": [{"name": model.name, **model.to_dict()} for model in self.models], **self.about}

    def lines(self) -> list[str]:
        """The published code's line of one model alone; else a table of at most 80 columns."""
        if self.alone:
            return [self.models[0].evaluation.line()]
        quality = "Acc@1" if self.labelled else "agree"
        header = f"{'model':29} {'sparsity':>8} {quality:>6} {'loss':>6} {'agree':>6} {'to first [95 %]':>20}"
        if not self.labelled:
            header = f"{'model':46} {'sparsity':>8} {'agree':>7} {'loss':>7} {'KL':>8}"
        lines = [header, "-" * len(header)]
        for place, model in enumerate(self.models):
            lines.append(self._line(model, first=place == 0))
        return [*lines, "", *textwrap.wrap(self._footnote(), _WIDTH)]

    def _line(self, model: ModelReport, *, first: bool) -> str:
        sparsity, evaluation = model.about.get("sparsity") or 0.0, model.evaluation
        assert model.agreement is not None
        if not self.labelled:
            return (
                f"{shortened(model.name, 46):46} {sparsity:8.1%} {model.agreement:7.2f} {evaluation.loss:7.3f} "
                f"{model.kl:8.4f}"
            )
        difference = "" if first or model.difference is None else str(model.difference)
        return (
            f"{shortened(model.name, 29):29} {sparsity:8.1%} {evaluation.acc1:6.2f} {evaluation.loss:6.3f} "
            f"{model.agreement:6.1f} {difference:>20}"
        ).rstrip()

    def _footnote(self) -> str:
        images = self.models[0].evaluation.images
        if not self.labelled:
            return (
                f"On {images} images without labels; agree: percent for which the first choice is that of the "
                "first model; the loss is against that choice, KL the divergence from its probabilities, in nats."
            )
        return (
            f"On {images} images. Agree: percent with the first choice of the first model; to first: points of "
            "Acc@1 on the same images, with the 95 % interval of Agresti and Min."
        )


def shortened(name: str, width: int) -> str:
    """``name`` in at most ``width`` columns: its end tells more than its middle."""
    if len(name) <= width:
        return name
    end = (width - 3) * 2 // 3
    return f"{name[: width - 3 - end]}...{name[-end:]}"
