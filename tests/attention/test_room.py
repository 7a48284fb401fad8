"""Maps that memory has no room for: measured in a file, to the bit, or refused before an image is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli
from safetensors.numpy import load_file

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.scratch import Scratch
from vitcod_cli.attention import room
from vitcod_cli.attention.room import MapBytes
from vitcod_cli.data.images import ImageData
from vitcod_cli.model.build import build_model
from vitcod_cli.model.load import save_model

CPU = torch.device("cpu")
WORDS = ("dump-attn", "--workers", "0", "--device", "cpu", "--batch-size", "4", "--importance-images", "4")
MAP = ("--map-images", "4", "--images", "4", "--workers", "0", "--device", "cpu", "--output", "new/rows.csv")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_model(path, build_model(tiny_config), {})
    return path


@pytest.fixture
def need(tiny_config: ModelConfig) -> MapBytes:
    return MapBytes.of(build_model(tiny_config), CPU, importance=True)


def test_what_is_needed(need: MapBytes, tiny_config: ModelConfig) -> None:
    entries = 2 * 3 * 17 * 17
    assert need.output == 8 * entries
    assert need.arrays == 12 * entries  # two blocks: the sums, and one block of them again
    assert need.scratch == 12 * entries
    assert need.rest > 2 * entries
    plain = MapBytes.of(build_model(tiny_config), CPU, importance=False)
    assert plain.output == 4 * entries
    assert plain.rest < need.rest


def test_a_file_gives_the_same_bits_as_memory(
    cli: Cli, checkpoint: Path, image_folder: Path, need: MapBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path | None] = []
    zeros = Scratch.zeros

    def noted(scratch: Scratch, *args: Any) -> Any:
        made.append(scratch.folder)
        return zeros(scratch, *args)

    monkeypatch.setattr(Scratch, "zeros", noted)
    words = (*WORDS, "--checkpoint", checkpoint, "--data-path", image_folder, "--output")
    assert cli(*words, "memory.safetensors").code == 0
    assert set(made) == {None}
    made.clear()
    monkeypatch.setattr(room, "available_memory", lambda: need.rest)
    outcome = cli(*words, "new/file.safetensors")
    assert outcome.code == 0
    assert "doesn't fit into memory while it is measured" in outcome.err
    assert {folder and folder.absolute() for folder in made} == {checkpoint.parent}
    folder = checkpoint.parent
    mine, expected = load_file(folder / "new/file.safetensors"), load_file(folder / "memory.safetensors")
    assert all((mine[name] == expected[name]).all() for name in ("attention", "importance"))
    assert [path.name for path in (folder / "new").iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize("command", ["dump-attn", "sensitivity", "compress"])
@pytest.mark.parametrize("scarce", ["memory", "scratch", "output"])
def test_what_fits_nowhere_is_told_before_images_are_looked_for(
    cli: Cli, checkpoint: Path, need: MapBytes, monkeypatch: pytest.MonkeyPatch, command: str, scarce: str
) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: need.rest - (scarce == "memory"))
    left = need.output - 1 if scarce == "output" else need.output + need.scratch - (scarce == "scratch")
    if command == "sensitivity":  # which writes no map
        left = need.scratch - (scarce != "memory")
    monkeypatch.setattr(room, "free_space", lambda folder: left)
    monkeypatch.setattr(ImageData, "__init__", lambda *args, **kwargs: pytest.fail("images were looked for"))
    words = {
        "dump-attn": (*WORDS, "--checkpoint", checkpoint, "--output", "new/attn.safetensors"),
        "sensitivity": ("sensitivity", "--method", "allocated", *MAP, "--checkpoint", checkpoint),
        "compress": ("compress", "--device", "cpu", "--init-from", checkpoint, "--output-dir", "new"),
    }
    outcome = cli(*words[command], "--data-path", ".")
    assert "An attention map with importance of [2, 3, 17, 17] " in outcome.error
    assert "take a smaller --img-size" in outcome.error
    assert "GB" in outcome.error
    assert not (checkpoint.parent / "new").exists()


def test_on_a_gpu_its_own_memory_holds_the_sums(tiny_config: ModelConfig) -> None:
    entries = 2 * 3 * 17 * 17
    need = MapBytes.of(build_model(tiny_config), torch.device("cuda"), importance=False)
    assert (need.gpu, need.arrays) == (8 * entries, 4 * entries)
