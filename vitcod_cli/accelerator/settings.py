"""Options of ``vitcod simulate``. Imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitcod_cli.settings import ResultSettings, Settings, setting


@dataclass(frozen=True, kw_only=True)
class SimulateOptions(Settings, panel="Accelerator"):
    """Options of ``vitcod simulate``."""

    mask: str | None = setting(
        None,
        "A mask, polarized or not, ours or a published .npy; with --sweep sparsity=... an attention map.",
        positional=True,
        metavar="MASK",
        flag="MASK",
    )
    model: Literal["estimate", "published"] = setting(
        "estimate",
        "estimate: all heads, with traffic, energy and baselines; published: the cycles of the published program, "
        "digit for digit (head 0 alone, no baselines).",
    )
    revision: Literal["v1", "v2", "v3"] | None = setting(
        None,
        "Of the published program: of January, March or June 2023.",
        show_default="v3",
    )
    pe_width: int = setting(64, "MAC lines of the published program.", minimum=1, maximum=65536)
    pe_height: int = setting(
        8,
        "MACs of a line of the published program; v3 has --pe-width of them in attention.",
        minimum=1,
        maximum=65536,
    )
    embedding: int | None = setting(
        None,
        "Channels of a token in the linear layers of the published program.",
        minimum=1,
        maximum=1_000_000,
        show_default="heads x --head-dim; left out there, 192",
    )
    hardware: str | None = setting(
        None, "YAML file of another chip.", metavar="FILE", show_default="the paper's; see --print-hardware"
    )
    print_hardware: bool = setting(
        False, "Print the default chip as a YAML file to copy, and end.", flag="--print-hardware"
    )
    threshold: str | None = setting(
        None,
        "Dense keys of a mask that isn't polarized, as in vitcod polarize.",
        metavar="COUNT|SHARE|auto",
        show_default="auto, by the work of each key alone; 50 for the published program, of any number of queries",
    )
    head_dim: int = setting(64, "Channels of a head.", minimum=1, maximum=65536)
    ratio: float | None = setting(
        None,
        "Heads of Q and K behind the auto-encoder over heads; 1: no auto-encoder.",
        above=0.0,
        maximum=1.0,
        show_default="half, rounded up, as finetune-lowrank makes it; 0.667 for the published program",
    )
    mlp_ratio: float = setting(4.0, "Hidden channels of the MLP over those of a token.", above=0.0, maximum=1000.0)
    sweep: list[str] = setting(
        [],
        "Estimate every combination of such values: of the chip (lines=32,64,128 bandwidth=38.4e9,76.8e9), of "
        "threshold and ratio, and, of an attention map, sparsity=0.8,0.9 and method=info,allocated.",
        metavar="KEY=VALUE,VALUE...",
        show_default=False,
    )
    output: str | None = setting(
        None, "Write the sweep to this .csv or .json file.", panel="Output", metavar="FILE", show_default=False
    )
    plot: str | None = setting(
        None,
        "Draw roofline, time of each block and load of each head to this .png, .pdf or .svg file.",
        panel="Output",
        metavar="FILE",
        show_default=False,
    )
    overwrite: bool = setting(False, "Replace files that are there already.", panel="Output")
    result: ResultSettings = field(default_factory=ResultSettings)
