"""Damaged files: whatever bytes are changed or missing, a reader reads or says one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map, write_attention_map
from vitcod_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
from vitcod_cli.artifacts.mask import Mask, read_mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError

CONFIG = ModelConfig(model="deit_tiny_patch16_224", num_classes=5, img_size=(32, 32))
WEIGHTS = {"head.weight": torch.ones(5, 4), "pos_embed": torch.ones(1, 17, 4)}
READERS: list[Callable[[Path], object]] = [
    lambda path: read_checkpoint(str(path), "--checkpoint"),
    read_mask,
    read_attention_map,
]


def make(kind: str, path: Path) -> None:
    attention = np.full((1, 2, 3, 3), 1 / 3, dtype=np.float32)
    match kind:
        case "checkpoint":
            write_checkpoint(path, WEIGHTS, CONFIG, {})
        case "mask":
            write_mask(path, Mask(attention > 0))
        case "map":
            write_attention_map(path, AttentionMap(attention, 3))
        case "published mask":
            with open(path, "wb") as file:
                np.save(file, attention > 0)
        case "published map":
            with open(path, "wb") as file:
                np.save(file, attention)
        case _:
            content = {"model": WEIGHTS, "args": argparse.Namespace(model="x", lr=0.1), "epoch": np.float64(3)}
            torch.save(content, path, _use_new_zipfile_serialization=kind == "published checkpoint")


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """Some bytes changed, mostly in the header, or some cut off, or some put in."""
    data = bytearray(whole)
    reach = len(data) if random.random() < 0.5 else min(len(data), 300)
    for _ in range(random.integers(1, 6)):
        data[random.integers(reach)] = random.integers(256)
    at = int(random.integers(reach))
    kind = random.integers(4)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        return bytes(data[:at] + random.bytes(int(random.integers(20))) + data[at:])
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["checkpoint", "mask", "map", "published mask", "published map", "published checkpoint", "old PyTorch file"],
)
def test_damaged_files(tmp_path: Path, kind: str) -> None:
    path, random = tmp_path / "file", np.random.default_rng(0)
    make(kind, path)
    whole, refused, several_lines = path.read_bytes(), 0, 0
    for _ in range(1000):
        path.write_bytes(damaged(whole, random))
        for read in READERS:
            try:
                read(path)
            except VitcodError as error:
                refused += 1
                several_lines += "\n" in str(error)
    assert several_lines == 0
    assert 1500 < refused <= 3000
