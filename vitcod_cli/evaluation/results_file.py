"""Results as a table in a file, with the columns of timm's ``validate.py`` first and ours behind them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import free_path, one_at_a_time
from vitcod_cli.artifacts.rows_file import is_json, write_rows
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.features_report import FeatureModel, FeaturesReport
from vitcod_cli.evaluation.report import EvaluationReport, ModelReport

_FLAG = "--results-file"
_LARGEST = 64 << 20

COLUMNS = (
    *("model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation"),
    *("checkpoint", "mask", "sparsity", "svd_type", "loss", "images", "agreement", "kl"),
    *("difference", "low", "high", "p", "against", "precision", "data_path", "split"),
)
FEATURE_COLUMNS = (
    *("model", "param_count", "img_size", "crop_pct", "interpolation", "checkpoint", "mask", "sparsity"),
    *("svd_type", "cosine", "cosine_p5", "relative_error", "patch_cosine", "patch_error"),
    *("same_nearest", "neighbour_overlap", "images"),
    *("against", "precision", "data_path", "split"),
)
"""Of models that are judged by their features."""


def check_results_file(path: str, *kinds: tuple[str, ...]) -> None:
    """Raise a VitcodError if rows can't be added to the file: before anything is computed.

    Args:
        kinds: the columns that the rows may turn out to have; those of the file must be among them.
    """
    free_path(path, True, flag=_FLAG)
    if Path(path).exists():
        _rows_before(path, *kinds)


def add_results(path: str, report: EvaluationReport | FeaturesReport) -> None:
    """Add a row a model, behind those that are there; written whole or not at all, by one process at a time."""
    columns: tuple[str, ...]
    if isinstance(report, FeaturesReport):
        columns, rows = FEATURE_COLUMNS, [_feature_row(model, report) for model in report.models]
    else:
        columns, rows = COLUMNS, [_accuracy_row(model, report) for model in report.models]
    with one_at_a_time(path):
        before = _rows_before(path, columns) if Path(path).exists() else []
        write_rows(Path(path), [*before, *({name: row[name] for name in columns} for row in rows)])


def _rows_before(path: str, *kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a file of ours.

    Raises:
        VitcodError: if it is something else.
    """
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        content = Path(path).read_text(encoding="utf-8")
        if is_json(Path(path)):
            rows = json.loads(content)
            if not isinstance(rows, list) or not any(
                all(isinstance(row, dict) and set(row) == set(columns) for row in rows) for columns in kinds
            ):
                raise ValueError("it holds other columns")
            return rows
        reader = csv.DictReader(io.StringIO(content), strict=True)
        if tuple(reader.fieldnames or ()) not in kinds:
            raise ValueError("it has other columns")
        rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has too many cells, or too few")
        return rows
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VitcodError(f"{_FLAG} {path} can't be added to ({reason}); name another file.") from error


def _shared_cells(model: ModelReport | FeatureModel, shared: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of every model."""
    about = model.about
    return {
        "model": (about.get("model_config") or {}).get("model", model.name),
        "param_count": "" if about.get("parameters") is None else round(about["parameters"] / 1e6, 2),
        "img_size": shared["input_size"][-1],
        "crop_pct": round(shared["crop_pct"], 4),
        "interpolation": shared["interpolation"],
        "checkpoint": about["checkpoint"],
        "mask": about["mask"] or "",
        "sparsity": about["sparsity"],
        "svd_type": about["svd_type"] or "",
        "precision": about.get("precision", shared["precision"]),
        "data_path": shared["data"]["path"],
        "split": shared["data"]["split"],
    }


def _feature_row(model: FeatureModel, report: FeaturesReport) -> dict[str, Any]:
    figures = model.comparison.to_dict()
    figures = {name: "" if value is None else round(value, 6) for name, value in figures.items()}
    return {**_shared_cells(model, report.about), **figures, "against": report.models[0].about["checkpoint"]}


def _accuracy_row(model: ModelReport, report: EvaluationReport) -> dict[str, Any]:
    evaluation = model.evaluation
    difference = model.difference
    shown = {
        "top1": evaluation.acc1,
        "top1_err": 100 - evaluation.acc1,
        "top5": evaluation.acc5,
        "top5_err": 100 - evaluation.acc5,
    }
    return {
        **_shared_cells(model, report.about),
        **{name: round(value, 4) if report.labelled else "" for name, value in shown.items()},
        "loss": round(evaluation.loss, 6),
        "images": evaluation.images,
        "agreement": "" if model.agreement is None else round(model.agreement, 4),
        "kl": "" if model.kl is None else round(model.kl, 6),
        "difference": "" if difference is None else round(difference.points, 4),
        "low": "" if difference is None else round(difference.low, 4),
        "high": "" if difference is None else round(difference.high, 4),
        "p": "" if difference is None else difference.p,
        "against": "" if report.alone else report.models[0].about["checkpoint"],
    }
