"""What ``compress`` and ``sweep`` print: tables of at most 80 columns."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitcod_cli.evaluation.names import distinct, padded
from vitcod_cli.pipeline.plan import in_words

Row = Mapping[str, Any]

_WIDTH = 80


def compress_lines(record: Mapping[str, Any], folder: str) -> list[str]:
    """Before and after, as a column a model; then what to do next."""
    final = record["model"]["row"]
    rows = [row for row in record["results"] if row["name"] in ("dense", "low-rank", final)]
    labelled = record["data"]["labelled"]
    lines = ["", *_columns(rows, labelled), ""]
    lines += _footnotes(rows, labelled)
    total = sum(stage["seconds"] for stage in record["stages"])
    model, data = f"{folder}/{record['model']['file']}", record["data"]["path"]
    lines += [
        f"{model} is the finished model; making it took {in_words(total)}. Next:",
        f"  vitcod eval --checkpoint {shlex.quote(model)} --data-path {shlex.quote(str(data))}",
        f"  vitcod export --checkpoint {shlex.quote(model)} --output {shlex.quote(f'{folder}/model.onnx')}",
        f"  vitcod report {shlex.quote(folder)}",
    ]
    return lines


def sweep_lines(record: Mapping[str, Any]) -> list[str]:
    """A line a point."""
    labelled = record["data"]["labelled"]
    quality = "Acc@1" if labelled else "agreement"
    header = f"{'model':18} {'sparsity':>8} {quality:>9} {'loss':>6} {'to dense [95 %]':>22} {'p':>7}"
    lines = ["", header, "-" * len(header)]
    names = distinct([row["name"] for row in record["results"]], 18)
    for row, name in zip(record["results"], names, strict=True):
        value = row["acc1"] if labelled else row["agreement"]
        difference = row["difference"]
        lines.append(
            f"{padded(name, 18)} {row['sparsity']:8.1%} {value:9.2f} {row['loss']:6.3f} "
            f"{_difference(difference):>22} {'' if difference is None else _p(difference['p']):>7}"
        )
    return [*lines, "", *_footnotes(record["results"], labelled)]


def _columns(rows: Sequence[Row], labelled: bool) -> list[str]:
    """A table with a line for each figure that the rows have."""
    dense = rows[0]
    figures: list[tuple[str, Callable[[Row], str]]] = [
        ("Acc@1", lambda row: f"{row['acc1']:.2f}"),
        ("  to dense [95 %]", lambda row: _difference(row["difference"])),
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


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    return f"{difference['points']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _share(value: float, whole: float, unit: float, letter: str) -> str:
    text = f"{value / unit:.{1 if value >= 10 * unit else 2}f} {letter}"
    return text if value == whole else f"{text} ({value / whole:.0%})"
