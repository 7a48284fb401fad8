"""The part of the page that tells of ``compress`` or ``sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcod_cli.report.html import Html, element, table
from vitcod_cli.report.quality import Card, quality_of
from vitcod_cli.report.run_section import run_section
from vitcod_cli.report.sources import Pipeline, is_number
from vitcod_cli.report.texts import anchor, facts, figure, flat, minutes


def pipeline_cards(record: Mapping[str, Any]) -> list[Card]:
    """What a reader wants first: the finished model beside the dense one, or how sparse it may become."""
    rows = record["results"]
    if not rows:
        return []
    dense, quality, chosen = rows[0], quality_of(record), record.get("model")
    if not isinstance(chosen, Mapping):
        points = sum(bool(row.get("method")) for row in rows[1:])
        return [
            *quality.swept(dense, rows[1:]),
            ("points", str(points), "masks, calibrated"),
            _made_in(record),
        ]
    final = next((row for row in rows if row["name"] == chosen.get("row")), rows[-1])
    return [
        *quality.final(dense, final),
        ("sparsity of attention", figure(final.get("sparsity"), ".1%"), str(final["name"])),
        ("attention MACs", *_share(final.get("attention_macs"), dense.get("attention_macs"), 1e6, "M")),
        ("all MACs", *_share(final.get("macs"), dense.get("macs"), 1e9, "G")),
        _made_in(record),
    ]


def _made_in(record: Mapping[str, Any]) -> tuple[str, str, str]:
    total = sum(stage["seconds"] for stage in record["stages"] if is_number(stage.get("seconds")))
    return "made in", minutes(total), f"{len(record['stages'])} stages"


def pipeline_section(source: Pipeline) -> Html:
    """Results, curves, stages and commands, and the run of the finished model."""
    record = source.record
    parts: list[object] = [
        element("h2", source.name, id=anchor(source.name)),
        _results(record),
        *_curves(record),
        element("h3", "Stages"),
        table(
            ("stage", "output", "time", "SHA-256"),
            (
                (
                    stage["name"],
                    stage.get("output", ""),
                    minutes(stage.get("seconds")),
                    _hash(stage.get("sha256")),
                )
                for stage in record["stages"]
            ),
            words=2,
        ),
        element("h3", "Commands"),
        element("p", "The whole:", class_="soft"),
        element("pre", record.get("command", "")),
    ]
    commands = [stage["command"] for stage in record["stages"] if stage.get("command")]
    if commands:
        steps = element("pre", "\n".join(map(str, commands)))
        parts.append(
            element("details", element("summary", "The same, step by step"), steps, open=len(commands) < 8)
        )
    parts.append(facts({**flat(record.get("environment")), **flat(record.get("data"), "data ")}))
    if source.run is not None:
        parts.append(run_section(source.run))
    return element("section", *parts)


def _results(record: Mapping[str, Any]) -> Html:
    quality = quality_of(record)
    rows = []
    for row in record["results"]:
        size = row.get("bytes")
        rows.append(
            {
                "model": row["name"],
                "sparsity": figure(row.get("sparsity"), ".1%"),
                **quality.cells(row),
                "attention MACs": _millions(row.get("attention_macs")),
                "file": f"{size / 2**20:.1f} MiB" if is_number(size) else "",
                "ms/image": figure(row.get("ms_per_image"), ".1f"),
                "made in": minutes(row.get("seconds")),
            }
        )
    images = record["results"][0].get("images", "?") if record["results"] else "?"
    filled = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    return table(
        filled,
        [[row[name] for name in filled] for row in rows],
        caption=f"On {images} validation images{quality.images_note}.",
    )


def _curves(record: Mapping[str, Any]) -> list[Html]:
    rows = [row for row in record["results"] if row.get("method") and is_number(row.get("sparsity"))]
    if len(rows) < 2:
        return []
    charts = quality_of(record).curves(record["results"][0], rows)
    return [element("div", *charts, class_="charts")] if charts else []


def _share(value: Any, whole: Any, unit: float, letter: str) -> tuple[str, str]:
    if not is_number(value):
        return "", ""
    text = f"{value / unit:.3g} {letter}"
    return text, f"{value / whole:.0%} of dense" if is_number(whole) and whole else ""


def _millions(value: Any) -> str:
    return f"{value / 1e6:,.1f} M" if is_number(value) else ""


def _hash(value: Any) -> Html | None:
    return element("code", str(value)[:16], title=str(value)) if value else None
