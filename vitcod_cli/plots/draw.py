"""Pictures of attention maps and masks: one a block, one of all blocks, and one over a picture.

matplotlib is imported inside the functions, and only its figures, never pyplot: no display is needed
and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.statistics import block_sparsity, head_sparsity
from vitcod_cli.model.grid import PATCH, Grid, patch_grid
from vitcod_cli.plots.canvas import DPI, Canvas, TokenAxis
from vitcod_cli.plots.files import save_figure
from vitcod_cli.plots.view import View
from vitcod_cli.reporting import Reporter

COLORS = "magma_r"  # perceptually even; dark = much attention, so that a pruned entry can be white
KEPT_COLOR = "#2b1155"
STRIP_COLOR = "#e8590c"
POLARIZED = "Below each mask: the same with its dense keys first."
MAX_COLUMNS = 4
OVERVIEW_PANEL = 150


@dataclass(frozen=True)
class Maps:
    """What there is to draw: an attention map, a mask, or both of one model.

    Attributes:
        attention: float [L, H, N, N] or None.
        keep: bool [L, H, N, N], True = kept, or None.
        num_prefix_tokens: tokens before the patches; drawn thicker, so that one row of 197 is seen.
        moved: of a polarized mask, bool [L, H, N, N]: the mask in its new order.
        global_tokens: of a polarized mask, [L, H]: how many of its keys are dense.
        model_config: what the files say of their model; may be empty.
    """

    attention: NDArray[Any] | None = None
    keep: NDArray[np.bool_] | None = None
    num_prefix_tokens: int = 1
    moved: NDArray[np.bool_] | None = None
    global_tokens: NDArray[np.int32] | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.attention is not None and self.keep is not None and self.attention.shape != self.keep.shape:
            raise VitcodError(
                f"The map has the shape {list(self.attention.shape)} but the mask {list(self.keep.shape)}: they "
                "belong to different models; give the mask that was made from this map."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, H, N, N)."""
        array = self.keep if self.attention is None else self.attention
        assert array is not None
        return array.shape

    @property
    def grid(self) -> Grid | None:
        """How the patches lie on an image; None where that isn't known."""
        return patch_grid(self.shape[-1] - self.num_prefix_tokens, self.model_config)

    @property
    def axis(self) -> TokenAxis:
        """The axes of each panel."""
        return TokenAxis(self.shape[-1], self.num_prefix_tokens, self.grid)


def save_plots(
    maps: Maps, folder: Path, title: str, reporter: Reporter, *, kind: str = "png", view: View | None = None
) -> list[Path]:
    """Write ``overview.png``, ``block_00.png`` ... and ``query.png`` into ``folder``; returns the paths.

    Args:
        title: what the pictures are of, such as the model's name; the head line of each.
        kind: png, pdf or svg.
        view: what ``query.png`` shows; None: there is none.

    Raises:
        VitcodError: if a file can't be written.
    """
    blocks = range(maps.shape[0])
    digits = max(2, len(str(blocks[-1])))
    drawings: dict[str, Callable[[], Any]] = {"overview": partial(draw_overview, maps, title)}
    drawings |= {f"block_{block:0{digits}}": partial(draw_block, maps, block, title) for block in blocks}
    if view is not None:
        drawings["query"] = partial(draw_query, maps, view, title)
    paths = [folder / f"{name}.{kind}" for name in drawings]
    options = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}
    with reporter.progress("drawing", len(paths), unit="pictures") as progress:
        for path, draw in zip(paths, drawings.values(), strict=True):
            save_figure(draw(), path, kind, dpi=DPI, **options)
            progress.advance()
    return paths


def draw_block(maps: Maps, block: int, title: str) -> Any:
    """A matplotlib Figure of one block: the map of each head and, below it, its mask."""
    num_heads, axis = maps.shape[1], maps.axis
    columns = min(num_heads, MAX_COLUMNS)
    kinds = sum(array is not None for array in (maps.attention, maps.keep, maps.moved))
    canvas = Canvas(axis.size, rows=kinds * math.ceil(num_heads / columns), columns=columns)
    pruned = "" if maps.keep is None else f", {block_sparsity(maps.keep[[block]])[0]:.1%} pruned"
    canvas.headline(f"{title}, block {block}{pruned}")
    canvas.footnote(" ".join(filter(None, (axis.tick_note, axis.note))))
    norm = None if maps.attention is None else _log_norm(maps.attention[block])
    for head in range(num_heads):
        row, column = kinds * (head // columns), head % columns
        if maps.attention is not None:
            panel = canvas.panel(row, column, f"head {head}")
            image = panel.imshow(axis.widen(maps.attention[block, head]), cmap=COLORS, norm=norm)
            axis.label(panel, queries=column == 0, keys=kinds == 1 and head + columns >= num_heads)
        if maps.keep is not None:
            keep = maps.keep[block, head]
            below = row + (maps.attention is not None)
            panel = canvas.panel(below, column, f"head {head}: {head_sparsity(keep):.1%} pruned")
            _draw_mask(panel, axis.widen(keep))
            last = head + columns >= num_heads
            axis.label(panel, queries=column == 0, keys=last and maps.moved is None)
            if maps.moved is not None:
                _draw_moved(canvas, maps, (block, head), (below + 1, column), keys=last)
    if norm is not None:
        canvas.color_bar(image, "mean attention probability (log scale)")
    return canvas.figure


def draw_overview(maps: Maps, title: str) -> Any:
    """A matplotlib Figure of all blocks (columns) and heads (rows); pruned entries are white."""
    (num_blocks, num_heads), axis = maps.shape[:2], maps.axis
    kinds = 1 if maps.moved is None else 2
    canvas = Canvas(OVERVIEW_PANEL, rows=kinds * num_heads, columns=num_blocks, gap=(8, 8), bottom=36)
    pruned = "" if maps.keep is None else f", {block_sparsity(maps.keep).mean():.1%} pruned"
    canvas.headline(f"{title}, all blocks{pruned}")
    notes = [axis.note, "White: pruned." if maps.keep is not None else "", "" if maps.moved is None else POLARIZED]
    canvas.footnote(" ".join(filter(None, notes)))
    norm = None if maps.attention is None else _log_norm(maps.attention)
    for block in range(num_blocks):
        for head in range(num_heads):
            name = f"block {block}" if head == 0 else ""
            if name and maps.keep is not None:
                name += f"\n{block_sparsity(maps.keep[[block]])[0]:.1%}"
            panel = canvas.panel(kinds * head, block, name)
            if maps.attention is None:
                assert maps.keep is not None
                _draw_mask(panel, axis.widen(maps.keep[block, head]))
            else:
                shown = maps.attention[block, head]
                if maps.keep is not None:
                    shown = np.ma.array(shown, mask=~maps.keep[block, head])
                image = panel.imshow(axis.widen(shown), cmap=COLORS, norm=norm, interpolation_stage="rgba")
            if block == 0:
                panel.set_ylabel(f"head {head}", fontsize=12)
            panel.set(xticks=[], yticks=[])
            if maps.moved is not None:
                below = canvas.panel(kinds * head + 1, block, "")
                _draw_mask(below, maps.moved[block, head])
                below.set(xticks=[], yticks=[])
    if norm is not None:
        canvas.color_bar(image, "mean attention probability (log scale)")
    return canvas.figure


def draw_query(maps: Maps, view: View, title: str) -> Any:
    """A matplotlib Figure of all blocks (columns) and heads (rows): what one patch of a picture looks at.

    Under a mask patches that it doesn't keep are dark; a map without a mask is laid over the picture.
    """
    from matplotlib.patches import Rectangle

    (num_blocks, num_heads), prefix = maps.shape[:2], maps.num_prefix_tokens
    canvas = Canvas(OVERVIEW_PANEL, rows=num_heads, columns=num_blocks, gap=(8, 8), bottom=36)
    canvas.headline(f"{title}, what the patch at row {view.row}, column {view.column} looks at")
    token, keys = view.token(prefix), "Bright: the patches that it keeps."
    norm = None
    if maps.keep is None:
        assert maps.attention is not None
        norm, keys = _log_norm(maps.attention[:, :, token]), "Colours: mean attention of the patch."
    canvas.footnote(f"Boxed: the patch that looks. {keys}")
    for block in range(num_blocks):
        for head in range(num_heads):
            panel = canvas.panel(head, block, f"block {block}" if head == 0 else "")
            if maps.keep is not None:
                kept = view.over_patches(maps.keep[block, head, token], prefix)
                panel.imshow(np.where(kept[..., None], view.picture, view.picture // 5))
            else:
                assert maps.attention is not None
                values = view.over_patches(maps.attention[block, head, token], prefix)
                panel.imshow(view.picture)
                image = panel.imshow(values, cmap=COLORS, norm=norm, alpha=0.7)
            corner = (view.column * PATCH - 0.5, view.row * PATCH - 0.5)
            panel.add_patch(Rectangle(corner, PATCH, PATCH, fill=False, edgecolor=STRIP_COLOR, linewidth=1.5))
            if block == 0:
                panel.set_ylabel(f"head {head}", fontsize=12)
            panel.set(xticks=[], yticks=[])
    if norm is not None:
        canvas.color_bar(image, "mean attention probability (log scale)")
    return canvas.figure


def _draw_moved(canvas: Canvas, maps: Maps, place: tuple[int, int], cell: tuple[int, int], *, keys: bool) -> None:
    """A head's mask in its new order, and a line behind its dense keys."""
    assert maps.moved is not None
    assert maps.global_tokens is not None
    dense = int(maps.global_tokens[place])
    noun = "dense key" if dense == 1 else "dense keys"
    panel = canvas.panel(*cell, f"head {place[1]}: {dense} {noun} first")
    _draw_mask(panel, maps.moved[place])
    panel.axvline(dense - 0.5, color=STRIP_COLOR, linewidth=1.2)
    step = max(1, round(maps.shape[-1] / 5))
    panel.set(xticks=range(0, maps.shape[-1], step), yticks=range(0, maps.shape[-1], step))
    panel.set(
        xticklabels=panel.get_xticks() if keys else [], yticklabels=panel.get_yticks() if not cell[1] else []
    )
    panel.set(xlabel="new place of the key" if keys else "", ylabel="" if cell[1] else "new place of the query")


def _draw_mask(panel: Any, keep: NDArray[np.bool_]) -> None:
    from matplotlib.colors import ListedColormap

    panel.imshow(keep, cmap=ListedColormap(["white", KEPT_COLOR]), vmin=0, vmax=1, interpolation_stage="rgba")


def _log_norm(attention: NDArray[Any]) -> Any:
    """A log scale over what the values mostly are; the few beyond are drawn in its end colours."""
    from matplotlib.colors import LogNorm

    low, high = np.percentile(attention, (2, 99.9))
    low = max(low, 0.01 / attention.shape[-1])  # a hundredth of looking everywhere alike
    return LogNorm(low, max(high, 10 * low), clip=True)
