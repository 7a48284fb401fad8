"""The part of the page that tells of ``compress`` or ``sweep``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcod_cli.report.charts import Level, Point, Series, line_chart
from vitcod_cli.report.html import Html, element, table
from vitcod_cli.report.run_section import run_section
from vitcod_cli.report.sources import Pipeline, is_number
from vitcod_cli.report.texts import anchor, facts, figure, flat, minutes

Row = Mapping[str, Any]
Card = tuple[str, str, str]
"""A figure of the page's head: its name, the figure, a note."""


def pipeline_cards(record: Mapping[str, Any]) -> list[Card]:
    """What a reader wants first: the finished model beside the dense one."""
    rows = record["results"]
    if not rows:
        return []
    dense, labelled = rows[0], _labelled(record)
    chosen = record.get("model")
    if not isinstance(chosen, Mapping):
        return _sweep_cards(record)
    final = next((row for row in rows if row["name"] == chosen.get("row")), rows[-1])
    quality = "acc1" if labelled else "agreement"
    difference = final.get("difference")
    cards = [
        (
            "Acc@1" if labelled else "agreement with dense",
            figure(final.get(quality), ".2f"),
            f"dense {figure(dense.get(quality), '.2f')}" if labelled else f"on {final.get('images', '?')} images",
        )
    ]
    if labelled and isinstance(difference, Mapping):
        cards.append(("difference to dense", figure(difference.get("points"), "+.1f"), _interval(difference)))
    cards.append(("sparsity of attention", figure(final.get("sparsity"), ".1%"), str(final["name"])))
    cards.append(("attention MACs", *_share(final.get("attention_macs"), dense.get("attention_macs"), 1e6, "M")))
    cards.append(("all MACs", *_share(final.get("macs"), dense.get("macs"), 1e9, "G")))
    return [*cards, _made_in(record)]


def _sweep_cards(record: Mapping[str, Any]) -> list[Card]:
    """The dense model, and how sparse it may become for a point and for three."""
    dense, *points = record["results"]
    what = "Acc@1" if _labelled(record) else "agreement"
    cards = [(f"dense {what}", figure(dense.get("acc1"), ".2f"), f"on {dense.get('images', '?')} images")]
    for allowed in (1, 3):
        within = [
            row
            for row in points
            if isinstance(row.get("difference"), Mapping)
            and is_number(row["difference"].get("points"))
            and is_number(row.get("sparsity"))
            and row["difference"]["points"] >= -allowed
        ]
        best = max(within, key=lambda row: float(row["sparsity"]), default=None)
        name = f"sparsity for {allowed} point{'s' if allowed > 1 else ''}"
        value = "none" if best is None else f"{best['sparsity']:.0%}"
        note = "" if best is None else f"{best['name']}, {_interval(best['difference'])}"
        cards.append((name, value, note))
    return [
        *cards,
        ("points", str(sum(bool(row.get("method")) for row in points)), "masks, calibrated"),
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
    labelled = _labelled(record)
    quality = ("Acc@1", "to dense [95 %]", "Acc@5") if labelled else ()
    header = ("model", "sparsity", *quality, "loss", "agreement", "attention MACs", "file", "ms/image", "made in")
    rows = []
    for row in record["results"]:
        difference = row.get("difference")
        shown = isinstance(difference, Mapping)
        figures: list[object] = [row["name"], figure(row.get("sparsity"), ".1%")]
        if labelled:
            figures += [
                figure(row.get("acc1"), ".2f"),
                f"{figure(difference.get('points'), '+.1f')} {_interval(difference)}" if shown else "",
                figure(row.get("acc5"), ".2f"),
            ]
        size = row.get("bytes")
        figures += [
            figure(row.get("loss"), ".3f"),
            figure(row.get("agreement"), ".1f"),
            _millions(row.get("attention_macs")),
            f"{size / 2**20:.1f} MiB" if is_number(size) else "",
            figure(row.get("ms_per_image"), ".1f"),
            minutes(row.get("seconds")),
        ]
        rows.append(figures)
    images = record["results"][0].get("images", "?") if record["results"] else "?"
    caption = f"On {images} validation images{'' if labelled else ', which have no labels'}."
    filled = [place for place in range(len(header)) if any(row[place] for row in rows)]
    return table(
        [header[place] for place in filled], [[row[place] for place in filled] for row in rows], caption=caption
    )


def _curves(record: Mapping[str, Any]) -> list[Html]:
    rows = [row for row in record["results"] if row.get("method") and is_number(row.get("sparsity"))]
    if len(rows) < 2 or not is_number(record["results"][0].get("acc1")):
        return []
    dense, what = record["results"][0], "Acc@1" if _labelled(record) else "agreement"

    def series(low: str, value: str, high: str, of: Any) -> list[Series]:
        methods = dict.fromkeys(str(row["method"]) for row in rows)
        return [
            Series(
                method,
                [
                    Point(100 * row["sparsity"], *(_number(of(row).get(name)) for name in (value, low, high)))
                    for row in sorted(rows, key=lambda row: float(row["sparsity"]))
                    if row["method"] == method and is_number(of(row).get(value))
                ],
            )
            for method in methods
        ]

    level = Level(
        f"dense ({dense['acc1']:.1f})", dense["acc1"], _optional(dense, "acc1_low"), _optional(dense, "acc1_high")
    )
    x = "pruned attention entries in %"
    left = line_chart(
        series("acc1_low", "acc1", "acc1_high", lambda row: row),
        title=f"{what} over sparsity, with 95 % intervals",
        x=x,
        y=f"{what} in %",
        level=level,
    )
    right = line_chart(
        series("low", "points", "high", lambda row: row.get("difference") or {}),
        title="Difference to dense on the same images, with 95 % intervals",
        x=x,
        y="points",
        level=Level("dense", 0.0),
    )
    return [element("div", left, right, class_="charts")]


def _labelled(record: Mapping[str, Any]) -> bool:
    data = record.get("data")
    return bool(data.get("labelled", True)) if isinstance(data, Mapping) else True


def _number(value: Any) -> Any:
    return float(value) if is_number(value) else None


def _optional(row: Row, name: str) -> float | None:
    value: float | None = _number(row.get(name))
    return value


def _interval(difference: Mapping[str, Any]) -> str:
    return f"[{figure(difference.get('low'), '+.1f')}, {figure(difference.get('high'), '+.1f')}]"


def _share(value: Any, whole: Any, unit: float, letter: str) -> tuple[str, str]:
    if not is_number(value):
        return "", ""
    text = f"{value / unit:.3g} {letter}"
    return text, f"{value / whole:.0%} of dense" if is_number(whole) and whole else ""


def _millions(value: Any) -> str:
    return f"{value / 1e6:,.1f} M" if is_number(value) else ""


def _hash(value: Any) -> Html | None:
    return element("code", str(value)[:16], title=str(value)) if value else None
