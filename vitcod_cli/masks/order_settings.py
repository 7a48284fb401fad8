"""Options of the order in which an accelerator takes tokens. Imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitcod_cli.settings import ResultSettings, Settings, required, setting

Order = Literal["tokens", "columns"]


@dataclass(frozen=True, kw_only=True)
class OrderSettings(Settings, panel="Order"):
    """Which keys are dense, and what moves."""

    threshold: str | None = setting(
        None,
        "A key is dense when more queries than this keep it: a number; a share of the queries such as 0.25; or "
        "auto, from where dense work is cheaper than sparse work of --sparse-efficiency.",
        metavar="COUNT|SHARE|auto",
        show_default="50 of 197 queries, as published",
    )
    sparse_efficiency: float = setting(
        0.25, "For auto: the share of its time that sparse work computes something.", above=0.0, maximum=1.0
    )
    order: Order = setting(
        "tokens",
        "What moves: tokens, so queries and keys (as published; outputs move back); columns: keys and values.",
    )


@dataclass(frozen=True, kw_only=True)
class PolarizeOptions(Settings, panel="Output"):
    """Options of ``vitcod polarize``."""

    mask: str = required(
        "A mask: ours or a published .npy.", "name a mask.", positional=True, metavar="MASK", flag="MASK"
    )
    format: Literal["vitcod", "published"] = setting(
        "vitcod", "published: the pair of .npy files that the published simulator reads, in --output-dir."
    )
    output: str | None = setting(
        None, "File to write.", metavar="FILE", show_default="the mask's name with _polarized"
    )
    output_dir: str = setting(".", "Folder of files named so.", metavar="FOLDER")
    npz: str | None = setting(
        None,
        "Also write mask, order and the index of the sparse part (CSC) to this .npz file.",
        metavar="FILE",
        show_default=False,
    )
    weights: str | None = setting(
        None,
        "Put this checkpoint's weights into the .npz file too, matrices as 8-bit integers with a scale a row.",
        metavar="FILE",
        show_default=False,
    )
    overwrite: bool = setting(False, "Replace files that are there already.")
    order: OrderSettings = field(default_factory=OrderSettings)
    result: ResultSettings = field(default_factory=ResultSettings)
