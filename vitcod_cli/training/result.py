"""What a training has come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.evaluation.evaluators import Score, line_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.training.position import Position


@dataclass(frozen=True)
class FitResult:
    """Outcome of a training.

    Attributes:
        best: the best evaluation, of raw or EMA weights; those are in ``best.safetensors``.
        last: the evaluation of the final raw weights, which the model now has.
        best_epoch: the epoch of ``best``, from 1 (0: before any training).
        epochs: epochs that were trained.
        checkpoint: the file of the best weights.
        best_is_ema: whether the EMA weights were the best.
        reference: name and score of the model that it was made from, or its teacher; of labelled images, where the
            run ends without training.
    """

    best: Score
    last: Score
    best_epoch: int
    epochs: int
    checkpoint: Path
    best_is_ema: bool = False
    reference: tuple[str, Score] | None = None

    def line(self) -> str:
        """The best evaluation, and beside it that of the reference."""
        return line_of(self.best, self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: those of the best evaluation, its epoch, the last one, the reference's, the checkpoint."""
        values = {**self.best.to_dict(), "best_epoch": self.best_epoch, "last": self.last.to_dict()}
        if self.reference is not None:
            values["reference"] = {"name": self.reference[0], **self.reference[1].to_dict()}
        return {**values, "checkpoint": str(self.checkpoint)}

    @classmethod
    def of(
        cls, position: Position, run: RunDirectory, reference: tuple[str, Score] | None, reporter: Reporter
    ) -> FitResult:
        """Of a run that has come to its end; says where the models are."""
        best, last = position.best, position.last
        assert best is not None
        assert last is not None
        where = f"Best: epoch {best.epoch}, in {run.best}; the last is in {run.last}."
        reporter.info(where if position.epoch or best.epoch else f"The model is in {run.best}, and in {run.last}.")
        return cls(best.evaluation, last, best.epoch, position.epoch, run.best, best.ema, reference)
