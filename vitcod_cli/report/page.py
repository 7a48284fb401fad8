"""The page: head figures, results, stages, curves, masks, and how all of it was made."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.report.charts import Level, Point, Series, line_chart
from vitcod_cli.report.html import Html, element, joined, table
from vitcod_cli.report.pictures import map_section, mask_section
from vitcod_cli.report.sources import Artifact, Pipeline, Run, Source, is_number
from vitcod_cli.report.style import STYLE
from vitcod_cli.version import __version__

Row = Mapping[str, Any]

_MOST_EPOCHS = 30


def page(sources: Sequence[Source], title: str | None) -> str:
    """The whole document."""
    heading = title or _title(sources)
    sections: list[object] = [_summary(sources)]
    for source in sources:
        if isinstance(source, Pipeline):
            sections.append(_pipeline(source))
        elif isinstance(source, Run):
            sections.append(_run(source))
        else:
            sections.append(_artifact(source))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", heading),
        element("style", Html(STYLE)),
    )
    body = element("body", element("h1", heading), *sections, _footnotes())
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _title(sources: Sequence[Source]) -> str:
    for source in sources:
        config = _config_of(source)
        if isinstance(config, Mapping) and config.get("model"):
            return f"{config['model']}, compressed"
    return "vitcod report"


def _config_of(source: Source) -> Any:
    return source.record.get("model_config") if isinstance(source, Pipeline) else source.info.get("model_config")


# -- head figures ---------------------------------------------------------------------------------


def _summary(sources: Sequence[Source]) -> Html | None:
    """What a reader wants first: the finished model beside the dense one."""
    pipeline = next((source for source in sources if isinstance(source, Pipeline)), None)
    if pipeline is not None:
        return _cards(_pipeline_cards(pipeline.record))
    runs = [source for source in sources if isinstance(source, Run) and is_number(source.info.get("acc1"))]
    if not runs:
        return None
    rows = [
        (
            element("a", run.name, href=f"#{_anchor(run.name)}"),
            run.command,
            f"{run.info['acc1']:.2f}",
            _figure(run.info.get("loss"), ".3f"),
            "" if run.keep is None else f"{sparsity_of(run.keep):.1%}",
            _minutes(_seconds_of(run)),
        )
        for run in runs
    ]
    first, last = runs[0], runs[-1]
    cards = [("Acc@1", f"{last.info['acc1']:.2f}", f"{first.info['acc1']:.2f} in {first.name}")]
    if last.keep is not None:
        cards.append(("sparsity of attention", f"{sparsity_of(last.keep):.1%}", last.name))
    return joined([_cards(cards), table(("run", "command", "Acc@1", "loss", "sparsity", "time"), rows, words=2)])


def _pipeline_cards(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
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
            _figure(final.get(quality), ".2f"),
            f"dense {_figure(dense.get(quality), '.2f')}" if labelled else f"on {final.get('images', '?')} images",
        )
    ]
    if labelled and isinstance(difference, Mapping):
        cards.append(("difference to dense", _figure(difference.get("points"), "+.1f"), _interval(difference)))
    cards.append(("sparsity of attention", _figure(final.get("sparsity"), ".1%"), str(final["name"])))
    cards.append(("attention MACs", *_share(final.get("attention_macs"), dense.get("attention_macs"), 1e6, "M")))
    cards.append(("all MACs", *_share(final.get("macs"), dense.get("macs"), 1e9, "G")))
    return [*cards, _made_in(record)]


def _sweep_cards(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The dense model, and how sparse it may become for a point and for three."""
    dense, *points = record["results"]
    what = "Acc@1" if _labelled(record) else "agreement"
    cards = [(f"dense {what}", _figure(dense.get("acc1"), ".2f"), f"on {dense.get('images', '?')} images")]
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
    return [*cards, ("points", str(len(points)), "masks, calibrated"), _made_in(record)]


def _made_in(record: Mapping[str, Any]) -> tuple[str, str, str]:
    total = sum(stage["seconds"] for stage in record["stages"] if is_number(stage.get("seconds")))
    return "made in", _minutes(total), f"{len(record['stages'])} stages"


def _cards(cards: Iterable[tuple[str, str, str]]) -> Html:
    items = [
        element(
            "li",
            element("span", name, class_="name"),
            element("span", value, class_="value"),
            element("span", note, class_="note"),
        )
        for name, value, note in cards
    ]
    return element("ul", *items, class_="cards")


# -- compress and sweep ---------------------------------------------------------------------------


def _pipeline(source: Pipeline) -> Html:
    record = source.record
    parts: list[object] = [
        element("h2", source.name, id=_anchor(source.name)),
        _results(record),
        *_curves(record),
        element("h3", "Stages"),
        table(
            ("stage", "output", "time", "SHA-256"),
            (
                (
                    stage["name"],
                    stage.get("output", ""),
                    _minutes(stage.get("seconds")),
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
    parts.append(_facts({**_flat(record.get("environment")), **_flat(record.get("data"), "data ")}))
    parts += [_run(run) for run in source.runs[-1:]]
    return element("section", *parts)


def _results(record: Mapping[str, Any]) -> Html:
    labelled = _labelled(record)
    quality = ("Acc@1", "to dense [95 %]", "Acc@5") if labelled else ()
    header = ("model", "sparsity", *quality, "loss", "agreement", "attention MACs", "file", "ms/image", "made in")
    rows = []
    for row in record["results"]:
        difference = row.get("difference")
        shown = isinstance(difference, Mapping)
        figures: list[object] = [row["name"], _figure(row.get("sparsity"), ".1%")]
        if labelled:
            figures += [
                _figure(row.get("acc1"), ".2f"),
                f"{_figure(difference.get('points'), '+.1f')} {_interval(difference)}" if shown else "",
                _figure(row.get("acc5"), ".2f"),
            ]
        size = row.get("bytes")
        figures += [
            _figure(row.get("loss"), ".3f"),
            _figure(row.get("agreement"), ".1f"),
            _millions(row.get("attention_macs")),
            f"{size / 2**20:.1f} MiB" if is_number(size) else "",
            _figure(row.get("ms_per_image"), ".1f"),
            _minutes(row.get("seconds")),
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


# -- fine-tuning runs -----------------------------------------------------------------------------


def _run(run: Run) -> Html:
    parts: list[object] = [
        element("h2", f"{run.name} ", id=_anchor(run.name)),
        element("p", f"vitcod {run.command}"),
    ]
    if not run.checkpoint:
        parts.append(
            element("p", "There is no checkpoint yet: the run goes on, or was stopped.", class_="warning")
        )
    if run.damaged:
        text = f"{run.damaged} lines of metrics.jsonl can't be read and are left out."
        parts.append(element("p", text, class_="warning"))
    parts += [_epochs(run), _charts(run)]
    if run.keep is not None:
        parts.append(mask_section(run.keep, run.name))
    about = run.config.get("about")
    about = about if isinstance(about, Mapping) else {}
    facts = {
        **_flat(run.info.get("versions") or about.get("versions")),
        "processes": run.info.get("processes"),
        f"SHA-256 of {run.checkpoint or 'the checkpoint'}": run.sha256 or None,
        **_flat(run.info.get("sha256"), "SHA-256 of "),
    }
    parts.append(_facts(facts))
    if run.config:
        values = {key: value for key, value in run.config.items() if key != "about"}
        again = shlex.join(["vitcod", run.command, "--config", f"{run.name}/config.yaml"])
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        details = element("summary", "All options (config.yaml)")
        parts.append(element("details", details, element("pre", again), element("pre", text)))
    return element("section", *parts)


def _epochs(run: Run) -> Html | None:
    lines = run.epochs
    if not lines:
        return None
    known = ("train_loss", "acc1", "acc5", "loss", "ema_acc1", "lr", "images_per_second", "seconds")
    names = [name for name in known if any(is_number(line.get(name)) for line in lines)]
    kept = lines if len(lines) <= _MOST_EPOCHS else [*lines[: _MOST_EPOCHS // 2], *lines[-_MOST_EPOCHS // 2 :]]
    rows = [(f"{line['epoch']:g}", *(_figure(line.get(name), ".4g") for name in names)) for line in kept]
    trained = sum(line["epoch"] > 0 for line in lines)
    caption = "Evaluated without training" if not trained else f"{trained} epoch{'s' if trained > 1 else ''}"
    caption += "" if len(kept) == len(lines) else f", of which {len(kept)} are shown"
    return table(("epoch", *names), rows, caption=caption)


def _charts(run: Run) -> Html | None:
    def over_epochs(*names: str) -> list[Series]:
        return [
            Series(name, [Point(line["epoch"], line[name]) for line in run.epochs if is_number(line.get(name))])
            for name in names
        ]

    def over_blocks(stage: str, *names: str) -> list[Series]:
        lines = [line for line in run.metrics if line.get("stage") == stage and is_number(line.get("block"))]
        return [
            Series(text, [Point(line["block"] + 1, line[name]) for line in lines if is_number(line.get(name))])
            for name, text in zip(names[::2], names[1::2], strict=True)
        ]

    charts: list[Html | None] = []
    if len(run.epochs) > 1:
        charts.append(line_chart(over_epochs("acc1", "ema_acc1"), title="Acc@1 of each epoch", x="epoch", y="%"))
        charts.append(
            line_chart(over_epochs("train_loss", "loss"), title="Loss of each epoch", x="epoch", y="nats")
        )
    calibrated = over_blocks("calibrate", "error_before", "before", "error", "after")
    charts.append(line_chart(calibrated, title="Calibration: error of each block", x="block", y="error"))
    energy = over_blocks("init", "kept_energy", "kept energy")
    charts.append(line_chart(energy, title="What the head auto-encoders keep", x="block", y="share"))
    drawn = [chart for chart in charts if chart is not None]
    return element("div", *drawn, class_="charts") if drawn else None


def _artifact(source: Artifact) -> Html:
    content = None
    if source.keep is not None:
        content = mask_section(source.keep, source.name)
    elif source.attention is not None:
        content = map_section(source.attention, source.name)
    facts = {"SHA-256": source.sha256, **_flat({k: v for k, v in source.info.items() if k != "model_config"})}
    return element("section", element("h2", source.name, id=_anchor(source.name)), content, _facts(facts))


# -- small things ---------------------------------------------------------------------------------


def _facts(facts: Mapping[str, Any]) -> Html | None:
    rows = [(name, element("code", _short(value))) for name, value in facts.items() if value is not None]
    return table(("made with", ""), rows, words=2) if rows else None


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Plain values of a mapping; what is nested stays out."""
    if not isinstance(values, Mapping):
        return {}
    return {
        f"{prefix}{name}": value for name, value in values.items() if isinstance(value, (str, int, float, bool))
    }


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _labelled(record: Mapping[str, Any]) -> bool:
    data = record.get("data")
    return bool(data.get("labelled", True)) if isinstance(data, Mapping) else True


def _figure(value: Any, form: str) -> str:
    return format(value, form) if is_number(value) else ""


def _number(value: Any) -> Any:
    return float(value) if is_number(value) else None


def _optional(row: Row, name: str) -> float | None:
    value: float | None = _number(row.get(name))
    return value


def _interval(difference: Mapping[str, Any]) -> str:
    return f"[{_figure(difference.get('low'), '+.1f')}, {_figure(difference.get('high'), '+.1f')}]"


def _share(value: Any, whole: Any, unit: float, letter: str) -> tuple[str, str]:
    if not is_number(value):
        return "", ""
    text = f"{value / unit:.3g} {letter}"
    return text, f"{value / whole:.0%} of dense" if is_number(whole) and whole else ""


def _millions(value: Any) -> str:
    return f"{value / 1e6:,.1f} M" if is_number(value) else ""


def _minutes(seconds: Any) -> str:
    if not is_number(seconds):
        return ""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _seconds_of(run: Run) -> float | None:
    """Seconds of calibration and epochs that the metrics tell of."""
    known = [line["seconds"] for line in run.metrics if is_number(line.get("seconds"))]
    return sum(known) if known else None


def _hash(value: Any) -> Html | None:
    return element("code", str(value)[:16], title=str(value)) if value else None


def _anchor(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def _footnotes() -> Html:
    terms = {
        "Acc@1, Acc@5": "percent of images whose label is the first, or among the first five, choices.",
        "sparsity": "share of the entries of all attention maps that the mask prunes, prefix tokens included.",
        "agreement": "percent of images for which the first choice is that of the dense model.",
        "95 % interval": (
            "of a difference: of Agresti and Min for matched pairs, on the same images; of an accuracy: Wilson's. "
            "It says what may be chance of these images, not of training."
        ),
        "attention MACs": "multiply-accumulates of Q K^T and A V for one image, kept entries only.",
        "calibration error": "of a block on images held out, relative to the dense block's output.",
    }
    items = [joined([element("dt", element("strong", name)), element("dd", text)]) for name, text in terms.items()]
    return element(
        "footer", element("h2", "Terms"), element("dl", *items), element("p", f"Made by vitcod {__version__}.")
    )
