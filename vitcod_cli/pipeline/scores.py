"""What a model is worth beside the dense one: accuracy, agreement or nearness of features; arithmetic, size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitcod_cli.bench.counting import count
from vitcod_cli.bench.timing import Spread, time_interleaved
from vitcod_cli.bench.workload import forward_pass
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import EvalLoader, eval_loader
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.distributed import from_main
from vitcod_cli.evaluation.extractor import FeatureExtractor
from vitcod_cli.evaluation.feature_comparison import compare_features
from vitcod_cli.evaluation.outcomes import Outcomes, Remembered, compare
from vitcod_cli.evaluation.paired import accuracy_interval, mean_interval, paired_difference
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import prepare_inference
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.pipeline.record import Row
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime

DENSE = "dense"

_TIMED_BATCH, _TIMED_SECONDS = 8, 1.5


class Scores:
    """Scores models on the validation images, which the dense model sees once where it has a head."""

    def __init__(
        self,
        folder: Path,
        dense: Path,
        images: ImageData,
        preprocess: Preprocess,
        *,
        classes: int,
        batch_size: int,
        workers: int | None,
        runtime: Runtime,
        reporter: Reporter,
    ) -> None:
        """``classes``: of the models; those without a head, 0, are scored by their features."""
        self.folder = folder
        self._measure = partial(_by_choices, labelled=images.labelled) if classes else _by_features
        self._by_features = not classes
        self._runtime, self._reporter = runtime, reporter
        self._dense_path = dense
        self._dense: nn.Module | None = None
        self._loader = eval_loader(
            images, preprocess, batch_size=batch_size, workers=workers, device=runtime.device, reporter=reporter
        )

    def row(self, name: str, checkpoint: Path, *, method: str | None, seconds: float) -> Row:
        """The row of a model, plain values.

        Args:
            seconds: that making it took.
        """
        model = self._load(checkpoint)
        size = _size(model, checkpoint)
        if self._dense is None:
            self._dense = self._judged(model if name == DENSE else self._load(self._dense_path))
            if not self._by_features:  # the tokens of all images would be too much to remember
                self._dense = Remembered(self._dense)
        if isinstance(self._dense, Remembered):
            self._dense.rewind()
        models = [self._dense] if name == DENSE else [self._dense, self._judged(model)]
        return {
            "name": name,
            "checkpoint": os.path.relpath(checkpoint, self.folder),
            "method": method,
            "seconds": round(seconds, 1),
            **self._measure(models, self._loader, self._runtime, self._reporter, f"eval {name}"),
            **size,
        }

    def milliseconds(self, rows: list[Row]) -> list[Spread]:
        """Time of an image for the model of each row, measured here by turns, in batches of eight."""
        models = [self._ready(self._load(self.folder / row["checkpoint"])) for row in rows]
        with ExitStack() as stack:
            works = [stack.enter_context(forward_pass(model, _TIMED_BATCH, self._runtime)) for model in models]
            for work in works:
                work.run()  # to warm up
            seconds = time_interleaved(
                [work.run for work in works],
                repeats=6,
                seconds=_TIMED_SECONDS,
                synchronize=self._runtime.synchronize,
            )
        return from_main([Spread.of([1000 * value / _TIMED_BATCH for value in times]) for times in seconds])

    def _load(self, checkpoint: Path) -> Transformer:
        return load_model(ModelSettings(), str(checkpoint), flag="--output-dir", reporter=QUIET)

    def _ready(self, model: Transformer) -> Transformer:
        return self._runtime.compiled(self._prepared(model))

    def _judged(self, model: Transformer) -> nn.Module:
        """Ready to give what it is judged by."""
        return (
            self._runtime.compiled(FeatureExtractor(self._prepared(model)).eval())
            if self._by_features
            else self._ready(model)
        )

    def _prepared(self, model: Transformer) -> Transformer:
        self._runtime.prepare(model).eval()
        prepare_inference(model, self._runtime.dtype)
        return model


def _by_choices(
    models: Sequence[nn.Module],
    loader: EvalLoader,
    runtime: Runtime,
    reporter: Reporter,
    description: str,
    *,
    labelled: bool,
) -> dict[str, Any]:
    """The last of ``models`` beside the first, the dense one; see :func:`compare`."""
    outcomes = compare(models, loader, runtime, reporter, labelled=labelled, description=description)
    return _accuracy(outcomes[-1], outcomes[0] if len(models) > 1 else None)


def _by_features(
    models: Sequence[nn.Module], loader: EvalLoader, runtime: Runtime, reporter: Reporter, description: str
) -> dict[str, Any]:
    """The last of ``models`` beside the first, the dense one; see :func:`compare_features`."""
    found = compare_features(models, loader, runtime, reporter, description)[-1]
    low, high = mean_interval(found.pooled.error)
    return {**found.to_dict(), "relative_error_low": max(low, 0.0), "relative_error_high": high}


def _accuracy(outcomes: Outcomes, dense: Outcomes | None) -> dict[str, Any]:
    evaluation = outcomes.evaluation
    low, high = accuracy_interval(evaluation.acc1, evaluation.images)
    difference = None
    if dense is not None:
        difference = paired_difference(outcomes.hit1, dense.hit1, outcomes.loss, dense.loss).to_dict()
    return {
        **evaluation.to_dict(),
        "acc1_low": low,
        "acc1_high": high,
        "agreement": outcomes.agreement,
        "kl": outcomes.kl,
        "difference": difference,
    }


def _size(model: Transformer, checkpoint: Path) -> dict[str, Any]:
    counts = count(model)
    return {
        "sparsity": counts.saved_attention_share,
        "attention_macs": counts.kept_attention_macs,
        "macs": counts.macs - counts.attention_macs + counts.kept_attention_macs,
        "parameters": counts.parameters,
        "bytes": checkpoint.stat().st_size,
    }
