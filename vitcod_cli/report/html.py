"""HTML by elements: whatever is text is escaped, so that nothing in a file can become a part of the page."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from vitcod_cli.reporting import visible, without_secrets

_VOID = frozenset({"meta", "img", "br", "hr", "col", "link"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """``element("td", "a < b", class_="figure")``: children are escaped unless they are :class:`Html`.

    None among children and attributes is left out; a true attribute stands alone.
    """
    parts = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        shown = key.rstrip("_").replace("_", "-")
        parts.append(shown if value is True else f'{shown}="{html.escape(_text(value))}"')
    begin = f"<{' '.join(parts)}>"
    return Html(begin if tag in _VOID else f"{begin}{joined(children)}</{tag}>")


def joined(children: Iterable[object]) -> Html:
    """Children one after the other."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(_text(child))
            for child in children
            if child is not None
        )
    )


def table(
    header: Iterable[object], rows: Iterable[Iterable[object]], *, caption: str | None = None, words: int = 1
) -> Html:
    """A table that scrolls inside its own box where it is too wide.

    Args:
        words: of the first columns, which hold words; the others hold figures, to the right.
    """

    def cell(kind: str, place: int, value: object) -> Html:
        head = kind == "th" or place == 0
        return element(
            "th" if head else "td",
            value,
            scope=("col" if kind == "th" else "row") if head else None,
            class_=None if place < words else "figure",
        )

    head = element("tr", *(cell("th", place, value) for place, value in enumerate(header)))
    body = [element("tr", *(cell("td", place, value) for place, value in enumerate(row))) for row in rows]
    content = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", head),
        element("tbody", *body),
    )
    return element("div", content, class_="wide", tabindex="0", role="region", aria_label=caption or "table")


def _text(value: Any) -> str:
    """As text that shows itself, and tells no secrets: control characters and marks of direction are spelt out."""
    if isinstance(value, Html):
        return value
    return "\n".join(visible(line) for line in without_secrets(str(value)).split("\n"))
