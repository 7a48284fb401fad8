"""``vitcod plot``: pictures of attention maps and masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

if TYPE_CHECKING:
    from vitcod_cli.plots.draw import Maps


@dataclass(frozen=True, kw_only=True)
class PlotSettings(Settings):
    """What stands over the pictures, and where they go."""

    title: str | None = setting(
        None, "Head line of the pictures.", panel="Output", metavar="TEXT", show_default="the model's name"
    )
    output_dir: str = setting("plots", "Folder for the pictures.", panel="Output", metavar="FOLDER")
    overwrite: bool = setting(False, "Replace pictures that are there already.", panel="Output")


def plot(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="An attention map, a mask, or one of each of the same model: ours or published .npy.",
            metavar="MAP_OR_MASK...",
        ),
    ],
    output: PlotSettings,
) -> None:
    """Draw attention maps and masks: one PNG a block, and an overview of all.

    Prints the paths of the pictures on stdout.
    """
    folder = Path(output.output_dir)
    if (folder / "overview.png").exists() and not output.overwrite:
        raise VitcodError(
            f"{folder} holds pictures already; replace them with --overwrite, or name another folder."
        )
    from vitcod_cli.cli.console import console, print_result
    from vitcod_cli.plots.draw import save_plots

    maps, name = _read(sources)
    for path in save_plots(maps, folder, output.title or name, console()):
        print_result(str(path))


def _read(sources: list[str]) -> tuple[Maps, str]:
    """The map and the mask among ``sources``, and the name of their model (or of the first file)."""
    from vitcod_cli.artifacts.attention_map import read_attention_map
    from vitcod_cli.artifacts.describe import MASK, describe
    from vitcod_cli.artifacts.files import checked_path
    from vitcod_cli.artifacts.mask import read_mask
    from vitcod_cli.plots.draw import Maps

    found: dict[str, Any] = {}
    info: dict[str, Any] = {}
    for source in sources:
        what = describe(checked_path(source, "MAP_OR_MASK"))
        kind = "keep" if what is not None and what.kind == MASK else "attention"
        if kind in found:
            raise VitcodError(
                f"{source} is a second {'mask' if kind == 'keep' else 'map'}; give one map and one mask."
            )
        if kind == "keep":
            mask = read_mask(source, "MAP_OR_MASK")
            found[kind], info = mask.keep, {**info, **mask.info}
        else:
            attention_map = read_attention_map(source, "MAP_OR_MASK")
            found[kind], info = attention_map.attention, {**info, **attention_map.info}
    maps = Maps(**found, num_prefix_tokens=info.get("num_prefix_tokens", 1))
    return maps, info.get("model_config", {}).get("model", Path(sources[0]).stem)
