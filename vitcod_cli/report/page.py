"""The page: head figures, a section for each run, map and mask, and terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitcod_cli.evaluation.neighbours import NEIGHBOURS
from vitcod_cli.masks.statistics import sparsity_of
from vitcod_cli.report.html import Html, element, joined, table
from vitcod_cli.report.pictures import map_section, mask_section
from vitcod_cli.report.pipeline_section import pipeline_cards, pipeline_section
from vitcod_cli.report.quality import Card
from vitcod_cli.report.run_section import run_section
from vitcod_cli.report.sources import Artifact, Pipeline, Run, Source, is_number
from vitcod_cli.report.style import STYLE
from vitcod_cli.report.texts import anchor, facts, figure, flat, minutes
from vitcod_cli.version import __version__


def page(sources: Sequence[Source], title: str | None) -> str:
    """The whole document."""
    heading = title or _title(sources)
    sections: list[object] = [_summary(sources)]
    for source in sources:
        if isinstance(source, Pipeline):
            sections.append(pipeline_section(source))
        elif isinstance(source, Run):
            sections.append(run_section(source))
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


def _summary(sources: Sequence[Source]) -> Html | None:
    """What a reader wants first: the finished model beside the dense one."""
    pipeline = next((source for source in sources if isinstance(source, Pipeline)), None)
    if pipeline is not None:
        return _cards(pipeline_cards(pipeline.record))
    runs = [source for source in sources if isinstance(source, Run)]
    for figures in (_ACCURACY, _FEATURES):
        judged = [run for run in runs if is_number(run.info.get(figures[0][1]))]
        if judged:
            return _runs(judged, figures)
    return None


_ACCURACY = (("Acc@1", "acc1", ".2f"), ("loss", "loss", ".3f"))
_FEATURES = (("cosine with dense", "cosine", ".4f"), ("error", "relative_error", ".1%"))


def _runs(runs: Sequence[Run], figures: Sequence[tuple[str, str, str]]) -> Html:
    """The last run beside the first, and all of them.

    Args:
        figures: of each: name, key in what its checkpoint says of itself, format; the first is the card's.
    """
    rows = [
        (
            element("a", run.name, href=f"#{anchor(run.name)}"),
            run.command,
            *(figure(run.info.get(key), form) for _, key, form in figures),
            "" if run.keep is None else f"{sparsity_of(run.keep):.1%}",
            minutes(_seconds_of(run)),
        )
        for run in runs
    ]
    (name, key, form), *_ = figures
    first, last = runs[0], runs[-1]
    cards = [(name, figure(last.info[key], form), f"{figure(first.info[key], form)} in {first.name}")]
    if last.keep is not None:
        cards.append(("sparsity of attention", f"{sparsity_of(last.keep):.1%}", last.name))
    header = ("run", "command", *(name for name, _, _ in figures), "sparsity", "time")
    return joined([_cards(cards), table(header, rows, words=2)])


def _cards(cards: Iterable[Card]) -> Html:
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


def _artifact(source: Artifact) -> Html:
    content = None
    if source.keep is not None:
        content = mask_section(source.keep, source.name)
    elif source.attention is not None:
        content = map_section(source.attention, source.name)
    made_with = {"SHA-256": source.sha256, **flat({k: v for k, v in source.info.items() if k != "model_config"})}
    return element("section", element("h2", source.name, id=anchor(source.name)), content, facts(made_with))


def _seconds_of(run: Run) -> float | None:
    """Seconds of calibration and epochs that the metrics tell of."""
    known = [line["seconds"] for line in run.metrics if is_number(line.get("seconds"))]
    return sum(known) if known else None


def _footnotes() -> Html:
    terms = {
        "Acc@1, Acc@5": "percent of images whose label is the first, or among the first five, choices.",
        "sparsity": "share of the entries of all attention maps that the mask prunes, prefix tokens included.",
        "agreement": "percent of images for which the first choice is that of the dense model.",
        "cosine, error": (
            "of the pooled features of a model without a head with those of its reference, the dense model; the "
            "error is their distance as a share of the reference's length; worst: what the worst twentieth of the "
            "images doesn't reach."
        ),
        "patches": "cosine and error of the patch tokens, the mean over tokens and images.",
        "same nearest, overlap": (
            "images whose nearest other image, by the cosine of pooled features, is the dense model's, and how "
            f"many of the {NEIGHBOURS} nearest are, the mean."
        ),
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
