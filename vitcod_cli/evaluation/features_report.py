"""What ``eval`` has found of features: a table of the models, plain values, and what the figures mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitcod_cli.evaluation.feature_comparison import FeatureComparison
from vitcod_cli.evaluation.neighbours import neighbours_of
from vitcod_cli.evaluation.table import model_table


def features_note(
    rows: Sequence[Mapping[str, Any]], reference: str, *, patches: str, neighbours: tuple[str, str] | None = None
) -> str:
    """What a table of features says; of what no row has a figure of, nothing.

    Args:
        rows: figures by name, of all models.
        reference: ``the first model``.
        patches: what is shown of patch tokens: ``patches: their cosine``.
        neighbours: how the table calls its figures of the nearest images; None where it has none.
    """
    images = rows[0]["images"]
    texts = [
        f"On {images} images, whose labels aren't looked at. cosine: of the pooled feature with {reference}'s, "
        "the mean, and what the worst twentieth of the images doesn't reach; error: the distance of the two as a "
        f"share of the length of {reference}'s, the mean"
    ]
    if has_figures(rows, "patch_cosine"):
        texts.append(f"{patches}, the mean over tokens and images")
    if neighbours is not None and has_figures(rows, "same_nearest"):
        nearest, overlap = neighbours
        texts += [
            f"{nearest}: images whose nearest other one, by the pooled feature, is {reference}'s",
            f"{overlap}: of the {neighbours_of(images)} nearest those that are {reference}'s, the mean",
        ]
    return "; ".join(texts) + "."


def has_figures(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether any row has the figure ``name``."""
    return any(row.get(name) is not None for row in rows)


def in_four_decimals(row: Mapping[str, Any], name: str) -> str:
    """A cosine; empty where it isn't known."""
    return "" if row.get(name) is None else f"{row[name]:.4f}"


def in_percent(row: Mapping[str, Any], name: str) -> str:
    """A share as ``12.3%``; empty where it isn't known."""
    return "" if row.get(name) is None else f"{row[name]:.1%}"


_SOMETIMES = (
    ("patches", "patch_cosine", in_four_decimals),
    ("p-error", "patch_error", in_percent),
    ("nearest", "same_nearest", in_percent),
    ("overlap", "neighbour_overlap", in_percent),
)
"""Columns that are left out where no model has the figure: head, name and text of it."""


@dataclass(frozen=True)
class FeatureModel:
    """One model of the report; ``about`` as for :class:`~vitcod_cli.evaluation.report.ModelReport`."""

    name: str
    about: Mapping[str, Any]
    comparison: FeatureComparison

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat."""
        return {**self.about, **self.comparison.to_dict()}


@dataclass(frozen=True)
class FeaturesReport:
    """All models of one call, the reference first; ``about`` is what they share."""

    models: Sequence[FeatureModel]
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``models`` beside what they share."""
        return {"models": [{"name": model.name, **model.to_dict()} for model in self.models], **self.about}

    def lines(self) -> list[str]:
        """A table of at most 80 columns."""
        rows = [model.to_dict() for model in self.models]
        columns = [
            ["sparse", *(f"{row.get('sparsity') or 0.0:.1%}" for row in rows)],
            ["cosine", *(in_four_decimals(row, "cosine") for row in rows)],
            ["worst", *(in_four_decimals(row, "cosine_p5") for row in rows)],
            ["error", *(in_percent(row, "relative_error") for row in rows)],
        ]
        for head, name, text in _SOMETIMES:
            if has_figures(rows, name):
                columns.append([head, *(text(row, name) for row in rows)])
        patches, neighbours = "patches, p-error: cosine and error of the patch tokens", ("nearest", "overlap")
        note = features_note(rows, "the first model", patches=patches, neighbours=neighbours)
        return model_table([model.name for model in self.models], columns, note)
