"""``vitcod dump-attn`` as a user meets it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from command_line import Cli

from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map, write_attention_map
from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.mask import read_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import set_keep_mask
from vitcod_cli.model.load import save_model

WORDS = ("dump-attn", "--workers", "0", "--device", "cpu", "--batch-size", "4", "--checkpoint")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_model(path, build_model(tiny_config), {})
    return path


def test_what_is_written(cli: Cli, checkpoint: Path, image_folder: Path, tiny_config: ModelConfig) -> None:
    outcome = cli(*WORDS, checkpoint, "--data-path", image_folder)
    assert (outcome.code, outcome.out) == (0, "attn.safetensors\n")
    found = read_attention_map(checkpoint.parent / "attn.safetensors")
    assert (found.attention.shape, found.num_images) == ((2, 3, 17, 17), 20)
    assert ModelConfig.from_dict(found.info["model_config"]) == tiny_config
    assert found.info["num_prefix_tokens"] == 1
    assert found.info["made_from"] == sha256_of(checkpoint)


def test_the_map_leads_to_a_mask_and_to_pictures(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    figures = json.loads(cli(*WORDS, checkpoint, "--data-path", image_folder, "--split", "val", "--json").out)
    assert figures == {"path": "attn.safetensors", "images": 13, "shape": [2, 3, 17, 17]}
    mask = cli("gen-mask", "--attn-map", figures["path"], "--sparsity", "0.6").out.strip()
    assert mask == "info_0.60.safetensors"
    names = cli("plot", figures["path"], mask).out.split()
    assert names == [f"plots/{name}.png" for name in ("overview", "block_00", "block_01")]


def test_importance_leads_to_an_allocated_mask(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    assert cli(*WORDS, checkpoint, "--data-path", image_folder, "--importance-images", "8").code == 0
    found = read_attention_map(checkpoint.parent / "attn.safetensors")
    assert found.importance is not None
    assert found.importance.shape == found.attention.shape
    assert found.info["importance_images"] == 8
    outcome = cli("gen-mask", "--attn-map", "attn.safetensors", "--sparsity", "0.6", "--allocate")
    assert outcome.out == "allocated_0.60.safetensors\n"
    assert outcome.err.splitlines()[-2].split() == ["all", "59.98%", "by", "allocated"]
    assert cli("plot", "attn.safetensors", "allocated_0.60.safetensors").code == 0


def test_damage_may_count_alike_in_all_blocks(
    cli: Cli, tmp_path: Path, image_folder: Path, tiny_config: ModelConfig
) -> None:
    """The second block of three keeps more of an allocated mask the more it counts; the map says how much."""
    torch.manual_seed(0)
    deeper = dataclasses.replace(tiny_config, model_kwargs={**tiny_config.model_kwargs, "depth": 3})
    save_model(tmp_path / "deeper", build_model(deeper), {})
    kept = []
    for weight in (1, 4, 400):
        words = ("--importance-images", 8, *(() if weight == 4 else ("--late-weight", weight)), "--output", "map")
        assert cli(*WORDS, "deeper", "--data-path", image_folder, *words, "--overwrite").code == 0
        assert read_attention_map(tmp_path / "map").info["late_weight"] == weight
        words = ("--sparsity", 0.6, "--allocate", "--output", "mask", "--overwrite")
        assert cli("gen-mask", "--attn-map", "map", *words).code == 0
        kept.append(int(read_mask(tmp_path / "mask").keep[1].sum()))
    assert kept[0] < kept[1] < kept[2]


def test_a_map_of_a_model_that_pools_patches_says_that_nothing_counts_more(
    cli: Cli, tmp_path: Path, image_folder: Path, tiny_config: ModelConfig
) -> None:
    pooled = dataclasses.replace(tiny_config, model_kwargs={**tiny_config.model_kwargs, "global_pool": "avg"})
    save_model(tmp_path / "pooled", build_model(pooled), {})
    words = ("--importance-images", 4, "--output", "map")
    assert cli(*WORDS, "pooled", "--data-path", image_folder, *words).code == 0
    assert read_attention_map(tmp_path / "map").info["late_weight"] == 1


def test_a_weight_of_what_is_not_measured_is_refused(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    outcome = cli(*WORDS, checkpoint, "--data-path", image_folder, "--late-weight", 2)
    assert outcome.code == 1
    assert "--late-weight weighs what --importance-images measures" in outcome.error


def test_importance_cut_to_another_shape_is_refused(cli: Cli, tmp_path: Path) -> None:
    attention = np.full((1, 1, 4, 4), 0.25, dtype=np.float32)
    odd = AttentionMap(attention, 1, {}, np.zeros((1, 1, 4, 3), dtype=np.float32))
    write_attention_map(tmp_path / "odd.safetensors", odd)
    outcome = cli("gen-mask", "--attn-map", "odd.safetensors", "--allocate")
    assert (outcome.code, outcome.out) == (1, "")
    assert "holds an importance that is not like its attention" in " ".join(outcome.err.split())


def test_training_transform_and_fewer_images(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    words = (*WORDS, checkpoint, "--data-path", image_folder, "--max-images", "6", "--json", "--output")
    assert json.loads(cli(*words, "plain").out)["images"] == 6
    for name in ("varied", "again"):
        assert json.loads(cli(*words, name, "--transform", "train").out)["images"] == 6
    plain, varied, again = (
        read_attention_map(checkpoint.parent / name).attention for name in ("plain", "varied", "again")
    )
    np.testing.assert_array_equal(varied, again)
    assert np.abs(plain - varied).max() > 1e-6


def test_a_sparse_checkpoint(cli: Cli, checkpoint: Path, image_folder: Path, tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    keep = torch.eye(17, dtype=torch.bool).expand(2, 3, -1, -1)
    set_keep_mask(model, keep)
    save_model(checkpoint, model, {})
    assert cli(*WORDS, checkpoint, "--data-path", image_folder, "--max-images", "2").code == 0
    found = read_attention_map(checkpoint.parent / "attn.safetensors")
    np.testing.assert_array_equal(found.attention, keep.numpy())
    assert found.info["sparse"] is True


def test_a_file_that_is_there_is_kept(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    target = checkpoint.parent / "attn.safetensors"
    target.write_bytes(b"precious")
    words = (*WORDS, checkpoint, "--data-path", image_folder)
    assert "--overwrite" in cli(*words).error
    assert target.read_bytes() == b"precious"
    assert cli(*words, "--overwrite", "--max-images", "1").code == 0
    assert read_attention_map(target).num_images == 1


def test_what_is_missing_is_named(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    assert "--checkpoint is needed" in cli("dump-attn", "--data-path", image_folder).error
    assert "nowhere" in cli(*WORDS, "nowhere.pth", "--data-path", image_folder).error
    assert "elsewhere" in cli(*WORDS, checkpoint, "--data-path", "elsewhere").error
    assert "--max-images must be at least 1" in cli(*WORDS, checkpoint, "--max-images", "0").error
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_two_processes_give_the_same_map(
    run_cli: Callable[..., CompletedProcess[str]], cli: Cli, checkpoint: Path, image_folder: Path
) -> None:
    words = (*WORDS, checkpoint, "--data-path", image_folder, "--split", "val", "--importance-images", "13")
    assert cli(*words, "--output", "one").code == 0
    result = run_cli(*words, "--output", "two", "--nproc-per-node", "2", timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "two\n"
    one, two = (read_attention_map(checkpoint.parent / name) for name in ("one", "two"))
    assert one.num_images == two.num_images == 13
    np.testing.assert_allclose(two.attention, one.attention, rtol=0, atol=1e-6)
    # Their random directions are others, so the order is alike, not equal.
    orders = [found.importance.ravel() for found in (one, two) if found.importance is not None]
    assert np.corrcoef(orders)[0, 1] > 0.8
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(order.size, dtype=np.float32) / order.size)
