"""Figures and facts of the page as text; anything but a finite number shows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcod_cli.report.html import Html, element, table
from vitcod_cli.report.sources import is_number


def figure(value: Any, form: str) -> str:
    """A number in a format of Python's."""
    return format(value, form) if is_number(value) else ""


def minutes(seconds: Any) -> str:
    """Seconds as people say them."""
    if not is_number(seconds):
        return ""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def anchor(name: str) -> str:
    """What a link inside the page names."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)


def facts(facts: Mapping[str, Any]) -> Html | None:
    """A table of what something was made with."""
    rows = [(name, element("code", _short(value))) for name, value in facts.items() if value is not None]
    return table(("made with", ""), rows, words=2) if rows else None


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Plain values of a mapping; what is nested stays out."""
    if not isinstance(values, Mapping):
        return {}
    return {
        f"{prefix}{name}": value for name, value in values.items() if isinstance(value, (str, int, float, bool))
    }


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
