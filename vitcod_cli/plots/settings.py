"""What is drawn, and where the pictures go. Imports neither numpy nor matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, required, setting


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Settings, panel="Output"):
    """Options of ``vitcod plot``."""

    sources: list[str] = required(
        "An attention map, a mask (or a checkpoint that holds one), or one of each of the same model.",
        "name an attention map or a mask.",
        positional=True,
        metavar="MAP_OR_MASK...",
        flag="MAP_OR_MASK",
    )
    title: str | None = setting(
        None, "Head line of the pictures.", metavar="TEXT", show_default="the model's name"
    )
    image: str | None = setting(
        None, "Draw over this picture, too, what one of its patches looks at.", metavar="FILE", show_default=False
    )
    query: tuple[int, int] | None = setting(
        None,
        "The patch of --image that looks: row and column in the grid of patches, from 0.",
        minimum=0,
        metavar="ROW COLUMN",
        show_default="the middle",
    )
    format: Literal["png", "pdf", "svg"] = setting("png", "Kind of the files.")
    output_dir: str = setting("plots", "Folder for the pictures.", metavar="FOLDER")
    overwrite: bool = setting(False, "Replace pictures that are there already.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query is not None and self.image is None:
            raise VitcodError("--query is a patch of --image: give that too, or leave it out.")
