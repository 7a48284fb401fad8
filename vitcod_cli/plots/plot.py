"""``vitcod plot``: read maps and masks, and draw them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.describe import MASK, describe
from vitcod_cli.artifacts.files import checked_path, free_folder
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.polarize import reordered
from vitcod_cli.plots.draw import Maps, save_plots
from vitcod_cli.plots.settings import PlotOptions
from vitcod_cli.reporting import Reporter

_FLAG = "MAP_OR_MASK"


def plot(options: PlotOptions, reporter: Reporter) -> list[Path]:
    """Draw what ``options`` name: an overview, and a picture for each block; returns their paths.

    Raises:
        VitcodError: if a file can't be read or written, or map and mask are of different models.
    """
    folder = free_folder(options.output_dir)
    if (folder / "overview.png").exists() and not options.overwrite:
        raise VitcodError(
            f"{folder} holds pictures already; replace them with --overwrite, or name another folder."
        )
    maps, name = _read(options.sources)
    return save_plots(maps, folder, options.title or name, reporter)


def _read(sources: list[str]) -> tuple[Maps, str]:
    """The map and the mask among ``sources``, and the name of their model (or of the first file)."""
    arrays: dict[str, Any] = {}
    info: dict[str, Any] = {}
    for source in sources:
        description = describe(checked_path(source, _FLAG))
        kind = "keep" if description is not None and description.kind == MASK else "attention"
        if kind in arrays:
            raise VitcodError(
                f"{source} is a second {'mask' if kind == 'keep' else 'map'}; give one map and one mask."
            )
        if kind == "keep":
            mask = read_mask(source, _FLAG)
            arrays[kind], info = mask.keep, {**info, **mask.info}
            if mask.order is not None:
                columns_only = mask.info.get("order") == "columns"
                arrays["moved"] = reordered(mask.keep, mask.order, columns_only=columns_only)
                arrays["global_tokens"] = mask.order.global_tokens
        else:
            attention_map = read_attention_map(source, _FLAG)
            arrays[kind], info = attention_map.attention, {**info, **attention_map.info}
    maps = Maps(**arrays, num_prefix_tokens=info.get("num_prefix_tokens", 1))
    return maps, info.get("model_config", {}).get("model", Path(sources[0]).stem)
