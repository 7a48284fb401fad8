"""The published simulator, digit for digit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from golden_masks import Keep, mask_of, real_masks, small_cases

from vitcod_cli.accelerator.published import PublishedChip, linear_cycles, published_cycles
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.polarize import token_order

DEFAULTS = {"feature_dim": 64, "ratio": 0.667, "PE_width": 64, "PE_height": 8}


def check(run: dict[str, Any], keep: Keep, threshold: int, version: str, linear: bool) -> None:
    """All parts of all blocks, and the totals; or a refusal where the program died."""
    arguments = {**DEFAULTS, **run["args"]}
    embedding = arguments.get("embedding", 192) if linear else None
    chip = PublishedChip(
        version,  # type: ignore[arg-type]
        arguments["feature_dim"],
        arguments["ratio"],
        arguments["PE_width"],
        arguments["PE_height"],
        embedding,
    )
    if run["error"]:
        assert "ZeroDivisionError" in run["error"]
        with pytest.raises(VitcodError, match=r"divides by zero: in block \d+ .* Leave out --model published"):
            published_cycles(keep, token_order(keep, threshold), chip)
        return
    if linear:
        layers = linear_cycles(*keep.shape[1:3], chip)
        assert asdict(layers) == run["per_layer"]
        assert layers.total(len(keep)) == run["totals"]["total"]
        return
    found = published_cycles(keep, token_order(keep, threshold), chip)
    assert len(found.blocks) == len(run["per_layer_head0"])
    for block, expected in zip(found.blocks, run["per_layer_head0"], strict=True):
        parts = asdict(block)
        assert {name: parts[name] for name in expected if name != "layer"} == {
            name: value for name, value in expected.items() if name != "layer"
        }
    totals = {**found.totals, "total": found.totals["attention"]}
    assert {name: totals[name] for name in run["totals"]} == run["totals"]


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: f"{case['N']}-{case['H']}-{case['threshold']}")
def test_small_masks(case: dict[str, Any]) -> None:
    for run in case["runs"]:
        check(run, mask_of(case), case["threshold"], run["version"], run["program"] == "linear")


def test_the_small_cases_have_what_they_promise() -> None:
    runs = [run for case in small_cases() for run in case["runs"]]
    assert len(runs) == 120
    assert sum(bool(run["error"]) for run in runs) > 10
    assert {run["version"] for run in runs} == {"v1", "v2", "v3"}


@pytest.mark.parametrize(
    ("revision", "heads", "load", "encode", "compute"),
    [
        ("v1", 3, 3122, 0, 56791),
        ("v2", 3, 1942, 0, 56791),
        ("v1", 12, 24061, 4728, 230208),
        ("v2", 12, 9091, 4728, 230208),
    ],
)
def test_linear_layers_of_earlier_revisions(
    revision: Any, heads: int, load: int, encode: int, compute: int
) -> None:
    """Of which there is no small case: 197 tokens, a ratio of 2/3, and an embedding of 192 whatever the heads."""
    layers = linear_cycles(heads, 197, PublishedChip(revision, ratio=2 / 3, embedding=192))
    assert (layers.linear_load, layers.linear_encode, layers.linear_compute) == (load, encode, compute)
    assert (layers.ffn_load, layers.ffn_compute) == (0, 113472)


def test_real_masks(shared: Path) -> None:
    """141 runs over 13 masks, some of them other groupings of the same heads."""
    golden = json.loads((shared / "accelerator" / "golden" / "published_simulator_runs.json").read_text())["runs"]
    masks = {name: keep for name, keep, _ in real_masks(shared)}
    count = 0
    for name, runs in golden.items():
        base, _, grouping = name.partition("_as_")
        keep = masks[base]
        if grouping:
            blocks, heads = map(int, grouping.split("x"))
            keep = keep.reshape(blocks, heads, *keep.shape[2:])
        for label, run in runs.items():
            check(run, keep, 50, label[:2], "ffn" in label)
            count += 1
    assert count == 141
