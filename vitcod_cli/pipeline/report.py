"""What ``compress`` and ``sweep`` print: tables of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.cells import set_cell_size

from vitcod_cli.evaluation.names import distinct
from vitcod_cli.evaluation.paired import PairedDifference
from vitcod_cli.pipeline.plan import in_words
from vitcod_cli.pipeline.scores import DENSE
from vitcod_cli.pipeline.stages import LOW_RANK

Row = Mapping[str, Any]

_WIDTH = 80


def compress_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """Before and after, as a column a model; then what to do next."""
    final, labelled = record["model"], record["data"]["labelled"]
    rows = [row for row in record["results"] if row["name"] in (DENSE, LOW_RANK, final["row"])]
    total = sum(stage["seconds"] for stage in record["stages"])
    return [
        *("", *_columns(rows, labelled), "", *_footnotes(rows, labelled)),
        f"{folder}/{final['file']} is the finished model; making it took {in_words(total)}. Next:",
        *(f"  {command}" for command in final["next"]),
    ]


def sweep_lines(record: Mapping[str, Any]) -> list[str]:
    """A line a point."""
    labelled = record["data"]["labelled"]
    quality = "Acc@1" if labelled else "agreement"
    header = f"{'model':18} {'sparsity':>8} {quality:>9} {'loss':>6} {'to dense [95 %]':>22} {'p':>7}"
    lines = ["", header, "-" * len(header)]
    names = distinct([row["name"] for row in record["results"]], 18)
    for row, name in zip(record["results"], names, strict=True):
        value = row["acc1"] if labelled else row["agreement"]
        difference = _paired(row)
        lines.append(
            f"{set_cell_size(name, 18)} {row['sparsity']:8.1%} {value:9.2f} {row['loss']:6.3f} "
            f"{difference or ''!s:>22} {'' if difference is None else difference.probability:>7}"
        )
    return [*lines, "", *_footnotes(record["results"], labelled)]


def _columns(rows: Sequence[Row], labelled: bool) -> list[str]:
    """A table with a line for each figure that the rows have."""
    dense = rows[0]
    figures: list[tuple[str, Callable[[Row], str]]] = [
        ("Acc@1", lambda row: f"{row['acc1']:.2f}"),
        ("  to dense [95 %]", lambda row: str(_paired(row) or "")),
        ("Acc@5", lambda row: f"{row['acc5']:.2f}"),
        ("loss", lambda row: f"{row['loss']:.3f}"),
        ("agreement with dense", lambda row: f"{row['agreement']:.1f} %"),
        ("sparsity of attention", lambda row: f"{row['sparsity']:.1%}"),
        ("attention MACs", lambda row: _share(row["attention_macs"], dense["attention_macs"], 1e6, "M")),
        ("all MACs", lambda row: _share(row["macs"], dense["macs"], 1e9, "G")),
        ("parameters", lambda row: f"{row['parameters'] / 1e6:.2f} M"),
        ("file", lambda row: f"{row['bytes'] / 2**20:.1f} MiB"),
        ("time of an image here", lambda row: f"{row['ms_per_image']:.1f} ms" if "ms_per_image" in row else ""),
    ]
    if not labelled:
        figures = [figure for figure in figures if figure[0] not in ("Acc@1", "Acc@5", "  to dense [95 %]")]
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


def _footnotes(rows: Sequence[Row], labelled: bool) -> list[str]:
    images = rows[0]["images"]
    text = (
        f"On {images} images; to dense: points of Acc@1 on the same images, with the 95 % interval of Agresti and "
        "Min, which says how much of it may be chance."
    )
    if not labelled:
        text = (
            f"On {images} images without labels. Agreement: the share for which the model chooses what the dense "
            "model chooses; the loss is against that choice, too."
        )
    return textwrap.wrap(text, _WIDTH)


def _paired(row: Row) -> PairedDifference | None:
    """The difference to dense; None of the dense model."""
    return None if row["difference"] is None else PairedDifference(**row["difference"])


def _share(value: float, whole: float, unit: float, letter: str) -> str:
    text = f"{value / unit:.{1 if value >= 10 * unit else 2}f} {letter}"
    return text if value == whole else f"{text} ({value / whole:.0%})"
