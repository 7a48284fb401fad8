"""The part of the page that tells of one fine-tuning run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import yaml

from vitcod_cli.report.charts import Point, Series, line_chart
from vitcod_cli.report.html import Html, element, table
from vitcod_cli.report.pictures import mask_section
from vitcod_cli.report.sources import Run, is_number
from vitcod_cli.report.texts import anchor, facts, figure, flat

_MOST_EPOCHS = 30


def run_section(run: Run) -> Html:
    """Epochs, calibration, mask, and all that it was made with."""
    parts: list[object] = [
        element("h2", f"{run.name} ", id=anchor(run.name)),
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
    made_with = {
        **flat(run.info.get("versions") or about.get("versions")),
        "processes": run.info.get("processes"),
        f"SHA-256 of {run.checkpoint or 'the checkpoint'}": run.sha256 or None,
        **flat(run.info.get("sha256"), "SHA-256 of "),
    }
    parts.append(facts(made_with))
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
    known = (
        *("train_loss", "acc1", "acc5", "loss", "ema_acc1", "cosine", "cosine_p5", "relative_error"),
        *("reference_acc1", "reference_loss", "lr", "images_per_second", "seconds"),
    )
    names = [name for name in known if any(is_number(line.get(name)) for line in lines)]
    kept = lines if len(lines) <= _MOST_EPOCHS else [*lines[: _MOST_EPOCHS // 2], *lines[-_MOST_EPOCHS // 2 :]]
    rows = [(f"{line['epoch']:g}", *(figure(line.get(name), ".4g") for name in names)) for line in kept]
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
