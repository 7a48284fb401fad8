"""From a mask and the user's options to a simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.accelerator.estimate import Estimate, baselines, estimate
from vitcod_cli.accelerator.hardware import Hardware, read_hardware
from vitcod_cli.accelerator.published import RATIO, PublishedChip, PublishedCycles, published_cycles
from vitcod_cli.accelerator.settings import SimulateOptions
from vitcod_cli.accelerator.workload import Shape
from vitcod_cli.artifacts.files import PICTURES, ROWS, check_suffix, checked_path, free_path
from vitcod_cli.artifacts.mask import Mask, TokenOrder, read_mask
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.polarize import PUBLISHED_THRESHOLD, Keep, check_threshold, threshold_of, token_order

FLAG = "MASK"


@dataclass(frozen=True)
class Simulation:
    """What one mask costs, and what it is compared with.

    Attributes:
        name: of the model, where the mask says it, else of the file.
        threshold: queries beyond which a key is dense; None where the file's own order was taken.
        found: the estimate, and those of the baselines by name.
    """

    name: str
    mask: Mask
    threshold: int | None
    found: Estimate
    baselines: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": "estimate",
            "threshold": self.threshold,
            **self.found.to_dict(),
            "baselines": {name: other.totals() for name, other in self.baselines.items()},
        }


def check_options(options: SimulateOptions) -> Path:
    """What can be refused before anything is read; returns the mask's (or map's) path.

    Raises:
        VitcodError: for options that don't go together, and places that can't be read or written.
    """
    if options.mask is None:
        raise VitcodError("MASK is needed: name a mask, or an attention map with --sweep sparsity=...")
    source = checked_path(options.mask, FLAG)
    check_threshold(options.threshold)
    published = options.model == "published"
    if options.revision is not None and not published:
        raise VitcodError("--revision is one of the published program: say --model published too.")
    for flag, changed in (("--pe-width", options.pe_width != 64), ("--pe-height", options.pe_height != 8)):
        if changed and not published:
            raise VitcodError(
                f"{flag} is one of the published program; give lines and macs_per_line in --hardware."
            )
    if options.embedding is not None and not published:
        raise VitcodError("--embedding is one of the published program: say --model published too.")
    if options.mlp_ratio != 4 and published:
        raise VitcodError("--mlp-ratio goes with the estimate: the published program's MLP is four times as wide.")
    for flag, given in (("--hardware", options.hardware), ("--sweep", options.sweep), ("--plot", options.plot)):
        if published and given:
            raise VitcodError(f"{flag} goes with the estimate, not with --model published; leave one of them out.")
    if options.output is not None:
        if not options.sweep:
            raise VitcodError("--output is the file of a --sweep; say --json for the figures of one mask.")
        check_suffix("--output", options.output, ROWS)
        free_path(options.output, options.overwrite, inputs=[source])
    if options.plot is not None:
        if options.sweep:
            raise VitcodError("--plot draws one mask, not a --sweep; leave one of them out.")
        check_suffix("--plot", options.plot, PICTURES)
        free_path(options.plot, options.overwrite, "--plot", inputs=[source])
    return source


def simulate(options: SimulateOptions) -> Simulation:
    """The estimate that ``options`` ask for.

    Raises:
        VitcodError: if mask or hardware can't be read, or mean nothing.
    """
    if options.model == "published" or options.sweep:  # from Python; the command line knows its way
        raise VitcodError("simulate() is the estimate of one mask; leave out model='published' and sweep.")
    hardware = read_hardware(options.hardware)
    source = check_options(options)
    mask = read_mask(source, FLAG)
    shape = shape_of(mask.keep, options.head_dim, options.ratio, options.mlp_ratio)
    order, threshold = order_of(mask, options.threshold, hardware)
    name = mask.info.get("model_config", {}).get("model", source.stem)
    found = estimate(mask.keep, order, shape, hardware)
    return Simulation(name, mask, threshold, found, baselines(mask.keep, order, shape, hardware))


def simulate_published(options: SimulateOptions) -> PublishedCycles:
    """What the published program says of the mask.

    Raises:
        VitcodError: if the mask can't be read, or the program has no figure for it.
    """
    mask = read_mask(check_options(options), FLAG)
    order, threshold = mask.order, PUBLISHED_THRESHOLD  # there, whatever the number of tokens
    if options.threshold is not None:
        threshold = threshold_of(options.threshold, mask.keep.shape[-1], 1.0)
    if order is None or options.threshold is not None:
        order = token_order(mask.keep, threshold)
    chip = PublishedChip(
        options.revision or "v3",
        options.head_dim,
        options.ratio or RATIO,
        options.pe_width,
        options.pe_height,
        options.embedding,
    )
    return published_cycles(mask.keep, order, chip)


def order_of(mask: Mask, threshold: str | None, hardware: Hardware) -> tuple[TokenOrder, int | None]:
    """The mask's own order, else one for ``hardware``, and the number of queries that made it."""
    if mask.order is not None and threshold is None:
        return mask.order, None
    queries = threshold_of(threshold or "auto", mask.keep.shape[-1], hardware.sparse_efficiency)
    return token_order(mask.keep, queries), queries


def shape_of(keep: Keep, head_dim: int, ratio: float | None, mlp_ratio: float) -> Shape:
    """The model's shape, with as many compressed heads as ``ratio`` is nearest to; none for 1.

    None is half of the heads, rounded up: what our auto-encoders have, and the published code's.
    """
    heads, num_tokens = keep.shape[1:3]
    compressed = None if ratio == 1 else math.ceil(heads / 2) if ratio is None else max(1, round(heads * ratio))
    return Shape(heads, num_tokens, head_dim, compressed, mlp_ratio)
