"""``vitcod simulate --sweep``: every combination of values, a row each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitcod_cli.accelerator.estimate import estimate_of
from vitcod_cli.accelerator.hardware import Hardware, read_hardware
from vitcod_cli.accelerator.run import FLAG, check_options, order_of, shape_of
from vitcod_cli.accelerator.settings import SimulateOptions
from vitcod_cli.accelerator.workload import Counts
from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map
from vitcod_cli.artifacts.mask import Mask, read_mask
from vitcod_cli.artifacts.rows_file import write_rows
from vitcod_cli.errors import VitcodError, did_you_mean, shown
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.polarize import check_threshold
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.settings import options_of

OF_MASKS = ("sparsity", "method")
OF_MODELS = ("threshold", "ratio")
METHODS = ("info", "allocated")
MOST = 100_000
"""Rows of a sweep."""

Row = dict[str, Any]


def values_of(sweep: list[str]) -> dict[str, list[str]]:
    """``lines=32,64`` and their like by key.

    Raises:
        VitcodError: for a key that is unknown or comes twice, and a key without values.
    """
    known = [*options_of(Hardware), *OF_MODELS, *OF_MASKS]
    found: dict[str, list[str]] = {}
    for text in sweep:
        key, equals, values = text.partition("=")
        key = key.replace("-", "_")
        if not equals or not all(value.strip() for value in values.split(",")):
            raise VitcodError(f"--sweep {shown(text)} has no values; write lines=32,64,128.")
        if key not in known:
            hint = did_you_mean(key, known, f"there are {', '.join(known)}.")
            raise VitcodError(f"--sweep {shown(key)} is nothing that can be swept; {hint}")
        if key in found:
            raise VitcodError(f"--sweep {key} is given twice; give all its values at once.")
        found[key] = [value.strip() for value in values.split(",")]
    if math.prod(map(len, found.values())) > MOST:
        raise VitcodError(f"--sweep has more than {MOST:,} combinations; give fewer values.")
    return found


def sweep(options: SimulateOptions, reporter: Reporter = QUIET) -> list[Row]:
    """A row for each combination: the values, then the totals of its estimate.

    Raises:
        VitcodError: if something can't be read, written, or means nothing.
    """
    swept = values_of(options.sweep)
    source = check_options(options)
    of_masks = {key: swept.pop(key) for key in OF_MASKS if key in swept}
    hardware = read_hardware(options.hardware)
    chips = [(values, *_chip(values, hardware, options)) for values in _combinations(swept)]
    masks = list(_settings_of_masks(of_masks)) if of_masks else [{}]
    rows: list[Row] = []
    with reporter.progress("simulating", len(masks) * len(chips), unit="estimates") as progress:
        attention_map = read_attention_map(source, FLAG) if of_masks else None
        for values in masks:
            mask = read_mask(source, FLAG) if attention_map is None else _mask(values, attention_map)
            counts: dict[tuple[str | None, float], Counts] = {}
            for chip_values, chip, threshold, ratio in chips:
                shape = shape_of(mask.keep, options.head_dim, ratio, options.mlp_ratio)
                key = threshold, chip.sparse_efficiency  # all that the order depends on
                if key not in counts:
                    counts[key] = Counts.of(mask.keep, order_of(mask, threshold, chip)[0])
                rows.append({**values, **chip_values, **estimate_of(counts[key], shape, chip).totals()})
                progress.advance()
    if options.output is not None:
        write_rows(Path(options.output), rows)
    return rows


def _combinations(values: dict[str, list[str]]) -> Iterator[dict[str, str]]:
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _chip(
    values: dict[str, str], hardware: Hardware, options: SimulateOptions
) -> tuple[Hardware, str | None, float | None]:
    texts = {key: value for key, value in values.items() if key not in OF_MODELS}
    ratio = options.ratio
    if "ratio" in values:
        ratio = options.changed(ratio=_number("ratio", values["ratio"])).ratio
    threshold = values.get("threshold", options.threshold)
    check_threshold(threshold)
    return hardware.with_texts(texts, "--sweep"), threshold, ratio


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise VitcodError(f"--sweep {key} {shown(text)} is not a number.") from error


def _settings_of_masks(values: dict[str, list[str]]) -> Iterator[Row]:
    if "sparsity" not in values:
        raise VitcodError("--sweep method=... needs the sparsities to reach: add sparsity=0.8,0.9.")
    for method in values.get("method", ["info"]):
        if method not in METHODS:
            raise VitcodError(f"--sweep method {shown(method)} is none of {' and '.join(METHODS)}.")
        for sparsity in values["sparsity"]:
            _mask_settings(method, _number("sparsity", sparsity))  # the range, before any is made
            yield {"method": method, "sparsity": _number("sparsity", sparsity)}


def _mask_settings(method: str, sparsity: float) -> MaskSettings:
    return MaskSettings.from_flat({"sparsity": sparsity, "allocate": method == "allocated"})


def _mask(values: Row, attention_map: AttentionMap) -> Mask:
    return generate_mask(attention_map, _mask_settings(values["method"], values["sparsity"]), QUIET)
