"""What is reported, and where to. Imports neither numpy nor torch."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.settings import Settings, required, setting


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Settings, panel="Output"):
    """Options of ``vitcod report``."""

    runs: list[str] = required(
        "Folders: of compress or sweep, of a fine-tuning run, or of several of these; maps and masks, too.",
        "name the folder of a run.",
        positional=True,
        metavar="RUN...",
        flag="RUN",
    )
    output: str | None = setting(
        None, "File to write.", metavar="FILE", show_default="report.html in the first folder"
    )
    title: str | None = setting(None, "Head line of the page.", metavar="TEXT", show_default="the model's name")
    overwrite: bool = setting(
        False, "Replace the file when it is there already, even if vitcod report did not write it."
    )
