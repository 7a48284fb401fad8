"""Looking at what a run has left in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def weights(folder: Path, name: str = "state") -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def figures(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the machine's mood."""
    measured = ("seconds", "images_per_second", "memory_mb", "loader_share")
    return [{key: value for key, value in line.items() if key not in measured} for line in metrics(folder)]


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit: weights, averaged weights, optimizer, checkpoints; and all figures."""
    for name in ("state", "last", "best"):
        a, b = weights(one, name), weights(other, name)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == [], name
    assert figures(one) == figures(other)
