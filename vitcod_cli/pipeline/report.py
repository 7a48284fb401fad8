"""What ``compress`` and ``sweep`` print: tables of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import set_cell_size

from vitcod_cli.evaluation.features import is_of_features
from vitcod_cli.evaluation.features_report import features_note, in_four_decimals, in_percent
from vitcod_cli.evaluation.names import distinct
from vitcod_cli.evaluation.paired import PairedDifference
from vitcod_cli.pipeline.plan import in_words
from vitcod_cli.pipeline.scores import DENSE
from vitcod_cli.pipeline.stages import LOW_RANK

Row = Mapping[str, Any]
Text = Callable[[Row], str]

_WIDTH = 80


@dataclass(frozen=True)
class _Quality:
    """How the tables say what models are worth.

    Attributes:
        figures: of ``compress``, a line each: name, and text of a row.
        columns: of ``sweep``: head, width, and text of a row.
        note: what they mean, of the rows of all models.
        sweep_note: the same of ``sweep``, where it has fewer.
    """

    figures: Sequence[tuple[str, Text]]
    columns: Sequence[tuple[str, int, Text]]
    note: Callable[[Sequence[Row]], str]
    sweep_note: Callable[[Sequence[Row]], str] | None = None


def compress_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """Before and after, as a column a model; then what to do next."""
    final, quality = record["model"], _quality_of(record)
    rows = [row for row in record["results"] if row["name"] in (DENSE, LOW_RANK, final["row"])]
    total = sum(stage["seconds"] for stage in record["stages"])
    return [
        *("", *_columns(rows, quality), "", *textwrap.wrap(quality.note(rows), _WIDTH)),
        f"{folder}/{final['file']} is the finished model; making it took {in_words(total)}. Next:",
        *(f"  {command}" for command in final["next"]),
    ]


def sweep_lines(record: Mapping[str, Any]) -> list[str]:
    """A line a point."""
    rows, quality = record["results"], _quality_of(record)
    columns: list[tuple[str, int, Text]] = [("sparsity", 8, _sparsity), *quality.columns]
    header = " ".join([f"{'model':18}", *(f"{head:>{width}}" for head, width, _ in columns)])
    lines = ["", header, "-" * len(header)]
    names = distinct([row["name"] for row in rows], 18)
    for row, name in zip(rows, names, strict=True):
        cells = [f"{text(row):>{width}}" for _, width, text in columns]
        lines.append(" ".join([set_cell_size(name, 18), *cells]))
    note = quality.sweep_note or quality.note
    return [*lines, "", *textwrap.wrap(note(rows), _WIDTH)]


def _columns(rows: Sequence[Row], quality: _Quality) -> list[str]:
    """A table with a line for each figure that the rows have."""
    dense = rows[0]
    figures: list[tuple[str, Text]] = [
        *((name, text) for name, text in quality.figures if any(map(text, rows))),
        ("sparsity of attention", _sparsity),
        ("attention MACs", lambda row: _share(row["attention_macs"], dense["attention_macs"], 1e6, "M")),
        ("all MACs", lambda row: _share(row["macs"], dense["macs"], 1e9, "G")),
        ("parameters", lambda row: f"{row['parameters'] / 1e6:.2f} M"),
        ("file", lambda row: f"{row['bytes'] / 2**20:.1f} MiB"),
        ("time of an image here", lambda row: f"{row['ms_per_image']:.1f} ms" if "ms_per_image" in row else ""),
    ]
    columns = [["", *(name for name, _ in figures)]]
    names = distinct([row["name"] for row in rows], 20)
    columns += [[name, *(text(row) for _, text in figures)] for name, row in zip(names, rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            [f"{name:{widths[0]}}", *(f"{text:>{width}}" for text, width in zip(rest, widths[1:], strict=True))]
        )
        for name, *rest in zip(*columns, strict=True)
    ]
    return [lines[0], "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]


def _quality_of(record: Mapping[str, Any]) -> _Quality:
    if is_of_features(record["results"][0]):
        return _FEATURES
    return _ACCURACY if record["data"]["labelled"] else _AGREEMENT


def _paired(row: Row) -> PairedDifference | None:
    """The difference to dense; None of the dense model."""
    return None if row["difference"] is None else PairedDifference(**row["difference"])


def _share(value: float, whole: float, unit: float, letter: str) -> str:
    text = f"{value / unit:.{1 if value >= 10 * unit else 2}f} {letter}"
    return text if value == whole else f"{text} ({value / whole:.0%})"


def _sparsity(row: Row) -> str:
    return f"{row['sparsity']:.1%}"


def _difference(row: Row) -> str:
    return str(_paired(row) or "")


def _probability(row: Row) -> str:
    difference = _paired(row)
    return "" if difference is None else difference.probability


def _loss(row: Row) -> str:
    return f"{row['loss']:.3f}"


def _agreement(row: Row) -> str:
    return f"{row['agreement']:.1f} %"


def _error_interval(row: Row) -> str:
    return f"[{100 * row['relative_error_low']:.1f}, {100 * row['relative_error_high']:.1f}]"


_PAIRED = [("loss", 6, _loss), ("to dense [95 %]", 22, _difference), ("p", 7, _probability)]

_ACCURACY = _Quality(
    figures=[
        ("Acc@1", lambda row: f"{row['acc1']:.2f}"),
        ("  to dense [95 %]", _difference),
        ("Acc@5", lambda row: f"{row['acc5']:.2f}"),
        ("loss", _loss),
        ("agreement with dense", _agreement),
    ],
    columns=[("Acc@1", 9, lambda row: f"{row['acc1']:.2f}"), *_PAIRED],
    note=lambda rows: (
        f"On {rows[0]['images']} images; to dense: points of Acc@1 on the same images, with the 95 % interval of "
        "Agresti and Min, which says how much of it may be chance."
    ),
)
_AGREEMENT = _Quality(
    figures=[("loss", _loss), ("agreement with dense", _agreement)],
    columns=[("agreement", 9, lambda row: f"{row['agreement']:.2f}"), *_PAIRED],
    note=lambda rows: (
        f"On {rows[0]['images']} images without labels. Agreement: the share for which the model chooses what the "
        "dense model chooses; the loss is against that choice, too."
    ),
)
_FEATURES = _Quality(
    figures=[
        ("cosine with dense", lambda row: f"{row['cosine']:.4f}"),
        ("  worst twentieth", lambda row: f"{row['cosine_p5']:.4f}"),
        ("error to dense", lambda row: f"{row['relative_error']:.1%}"),
        ("  [95 %]", _error_interval),
        ("patch tokens: cosine", lambda row: in_four_decimals(row, "patch_cosine")),
        ("  error", lambda row: in_percent(row, "patch_error")),
        ("same nearest image", lambda row: in_percent(row, "same_nearest")),
        ("  overlap of nearest", lambda row: in_percent(row, "neighbour_overlap")),
    ],
    columns=[
        ("cosine", 8, lambda row: f"{row['cosine']:.4f}"),
        ("worst", 8, lambda row: f"{row['cosine_p5']:.4f}"),
        ("error", 7, lambda row: f"{row['relative_error']:.1%}"),
        ("[95 %]", 14, _error_interval),
        ("patches", 8, lambda row: in_four_decimals(row, "patch_cosine")),
    ],
    note=lambda rows: features_note(
        rows,
        "the dense model",
        patches="patch tokens: cosine and error",
        neighbours=("same nearest", "overlap"),
    ),
    sweep_note=lambda rows: features_note(
        rows, "the dense model", patches="patches: the cosine of the patch tokens"
    ),
)
