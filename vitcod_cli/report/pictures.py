"""Masks and attention maps as small pictures inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcod_cli.masks.statistics import head_sparsity
from vitcod_cli.report.html import Html, element

_MOST_BLOCKS = 24
_WIDEST = 640
"""Pixels of a picture: heads side by side."""


def mask_section(keep: NDArray[np.bool_], name: str) -> Html:
    """Pictures of the blocks of a mask bool [L, H, N, N], and the sparsity of each head."""
    return element(
        "section",
        element("h3", f"Mask {name}"),
        _heat(head_sparsity(keep)),
        element("details", element("summary", "Pictures of every block"), _pictures(keep, name, _bits)),
    )


def map_section(attention: NDArray[Any], name: str) -> Html:
    """Pictures of the blocks of a map [L, H, N, N]."""
    return element(
        "section",
        element("h3", f"Attention map {name}"),
        element(
            "p", "Each row is brightest at its largest entry; queries downwards, keys to the right.", class_="soft"
        ),
        element("details", element("summary", "Pictures of every block"), _pictures(attention, name, _grey)),
    )


def _pictures(values: NDArray[Any], name: str, draw: Any) -> Html:
    shown = values[:_MOST_BLOCKS]
    figures = [
        element(
            "figure",
            element(
                "img",
                src=draw(block),
                alt=f"{name}, block {number}: {len(block)} heads side by side",
                loading="lazy",
            ),
            element("figcaption", f"block {number}"),
        )
        for number, block in enumerate(shown, 1)
    ]
    more = len(values) - len(shown)
    note = element("p", f"{more} more blocks aren't shown.", class_="soft") if more else None
    return element("div", element("div", *figures, class_="pictures"), note)


def _side_by_side(block: NDArray[Any], gap: Any) -> NDArray[Any]:
    """Heads [H, N, N] as one picture, as many as fit, thinned where they are too large."""
    heads = block[: max(1, min(len(block), 6))]
    thin = -(-heads.shape[-1] * len(heads) // _WIDEST)
    heads = heads[:, ::thin, ::thin]
    column = np.full((heads.shape[1], 2), gap, dtype=heads.dtype)
    parts = [part for head in heads for part in (head, column)]
    return np.concatenate(parts[:-1], axis=1)


def _bits(block: NDArray[np.bool_]) -> str:
    pixels = np.where(_side_by_side(block, False), 0, 255).astype(np.uint8)
    return _png(Image.fromarray(pixels).convert("1", dither=Image.Dither.NONE))


def _grey(block: NDArray[Any]) -> str:
    values = block.astype(np.float32)
    values = np.nan_to_num(values / np.maximum(values.max(axis=-1, keepdims=True), 1e-12))
    pixels = 255 - (255 * np.sqrt(np.clip(_side_by_side(values, 0), 0, 1))).astype(np.uint8)
    return _png(Image.fromarray(pixels).quantize(32))


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _heat(sparsity: NDArray[np.float64]) -> Html:
    """Sparsity of every head [L, H] as a coloured table."""
    shown = sparsity[:_MOST_BLOCKS, :16]
    head = element(
        "tr",
        element("th", "sparsity in %", scope="col"),
        *(element("th", f"head {number}", scope="col") for number in range(1, shown.shape[1] + 1)),
    )
    rows = [
        element(
            "tr",
            element("th", f"block {number}", scope="row"),
            *(element("td", f"{100 * value:.1f}", style=f"background:{_color(value)}") for value in row),
        )
        for number, row in enumerate(shown, 1)
    ]
    content = element("table", element("thead", head), element("tbody", *rows), class_="heat")
    return element("div", content, class_="wide", tabindex="0", role="region", aria_label="sparsity of every head")


def _color(value: float) -> str:
    """From white, nothing pruned, to blue."""
    value = min(max(value, 0.0), 1.0)
    return "#" + "".join(f"{round(255 - value * (255 - end)):02x}" for end in (110, 170, 225))
