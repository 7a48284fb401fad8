"""What is drawn, and where the pictures go. Imports neither numpy nor matplotlib."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.settings import Settings, required, setting


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Settings, panel="Output"):
    """Options of ``vitcod plot``."""

    sources: list[str] = required(
        "An attention map, a mask, or one of each of the same model: ours or published .npy.",
        "name an attention map or a mask.",
        positional=True,
        metavar="MAP_OR_MASK...",
        flag="MAP_OR_MASK",
    )
    title: str | None = setting(
        None, "Head line of the pictures.", metavar="TEXT", show_default="the model's name"
    )
    output_dir: str = setting("plots", "Folder for the pictures.", metavar="FOLDER")
    overwrite: bool = setting(False, "Replace pictures that are there already.")
