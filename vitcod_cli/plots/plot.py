"""``vitcod plot``: read maps and masks, and draw them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.describe import CHECKPOINT, MASK, describe
from vitcod_cli.artifacts.files import checked_path, free_folder
from vitcod_cli.artifacts.mask import Mask, mask_in_checkpoint, read_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.polarize import reordered
from vitcod_cli.plots.draw import Maps, save_plots
from vitcod_cli.plots.settings import PlotOptions
from vitcod_cli.plots.view import look_at
from vitcod_cli.reporting import Reporter

_FLAG = "MAP_OR_MASK"


def plot(options: PlotOptions, reporter: Reporter) -> list[Path]:
    """Draw what ``options`` name: an overview, and a picture for each block; returns their paths.

    Raises:
        VitcodError: if a file can't be read or written, or map and mask are of different models.
    """
    folder = free_folder(options.output_dir)
    # Which blocks there are is known only once the files are read: any block's picture counts.
    names = ["overview", "block_[0-9]*", *(["query"] if options.image else [])]
    if not options.overwrite and any(list(folder.glob(f"{name}.{options.format}")) for name in names):
        raise VitcodError(
            f"{folder} holds pictures already; replace them with --overwrite, or name another folder."
        )
    maps, name = _read(options.sources)
    view = None if options.image is None else look_at(options.image, options.query, maps.grid)
    return save_plots(maps, folder, options.title or name, reporter, kind=options.format, view=view)


def _read(sources: list[str]) -> tuple[Maps, str]:
    """The map and the mask among ``sources``, and the name of their model (or of the first file)."""
    arrays: dict[str, Any] = {}
    info: dict[str, Any] = {}
    for source in sources:
        description = describe(checked_path(source, _FLAG))
        its_kind = None if description is None else description.kind
        kind = "keep" if its_kind in (MASK, CHECKPOINT) else "attention"
        if kind in arrays:
            raise VitcodError(
                f"{source} is a second {'mask' if kind == 'keep' else 'map'}; give one map and one mask."
            )
        if kind == "keep":
            mask = read_mask(source, _FLAG) if its_kind == MASK else _mask_of_checkpoint(source)
            arrays[kind], info = mask.keep, {**info, **mask.info}
            if mask.order is not None:
                columns_only = mask.info.get("order") == "columns"
                arrays["moved"] = reordered(mask.keep, mask.order, columns_only=columns_only)
                arrays["global_tokens"] = mask.order.global_tokens
        else:
            attention_map = read_attention_map(source, _FLAG)
            arrays[kind], info = attention_map.attention, {**info, **attention_map.info}
    config = info.get("model_config", {})
    # A mask may protect other tokens than its model has before the patches (gen-mask --num-prefix-tokens).
    prefix = info.get("map_num_prefix_tokens", info.get("num_prefix_tokens", 1))
    maps = Maps(**arrays, num_prefix_tokens=prefix, model_config=config)
    return maps, config.get("model", Path(sources[0]).stem)


def _mask_of_checkpoint(source: str) -> Mask:
    description = describe(source)
    if description is None or not description.own:
        raise VitcodError(f"{_FLAG} {source} is a checkpoint that vitcod did not write; give its mask itself.")
    mask = mask_in_checkpoint(source, _FLAG)
    if mask is None:
        raise VitcodError(
            f"{_FLAG} {source} is a checkpoint without a mask; give a mask, or an attention map of dump-attn."
        )
    return mask
