"""``vitcod inspect``: facts of every kind of file, worked out apart from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Cli, MakeMap
from safetensors.torch import save_file

from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.mask import Mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.inspection.checkpoints import kept_energy
from vitcod_cli.inspection.masks import row_entropy
from vitcod_cli.masks.info import info_mask
from vitcod_cli.masks.polarize import token_order
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import set_keep_mask
from vitcod_cli.model.load import save_model

SHAPE = (2, 3, 17, 17)
KEEP = np.random.default_rng(0).random(SHAPE) < 0.3


def facts(cli: Cli, *words: object) -> dict[str, Any]:
    outcome = cli("inspect", *map(str, words), "--json")
    found: dict[str, Any] = json.loads(outcome.out)
    text = cli("inspect", *map(str, words)).out
    assert all(len(line) <= 80 or "/" in line for line in text.splitlines())
    return found


def test_a_mask(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_mask(path, Mask(KEEP, {"method": "info", "info_cut": 0.5, "model_config": {"model": "deit"}}))
    (found,) = facts(cli, path, "--threshold", "6", "--head-dim", "8")["files"]
    keys = KEEP.sum(-1)
    assert found["kind"] == "mask"
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["made"] == {"method": "info", "info_cut": 0.5, "model": "deit"}
    assert found["sparsity"] == pytest.approx(1 - KEEP.mean())
    np.testing.assert_allclose(found["per_head"], 1 - KEEP.mean((-2, -1)))
    assert found["keys_per_query"] == {"least": keys.min(), "median": np.median(keys), "most": keys.max()}
    assert found["global_tokens"] == (KEEP.sum(-2) > 6).sum(-1).tolist()
    assert found["attention_macs"] == 2 * 8 * KEEP.sum()
    assert found["dense_attention_macs"] == 2 * 8 * KEEP.size
    assert not found["polarized"]
    assert found["empty_rows"] == (keys == 0).sum()


def test_the_authors_mask_has_the_authors_global_tokens(cli: Cli, shared: Path) -> None:
    (found,) = facts(cli, shared / "golden" / "vitcod_deit_tiny_info_0.95.npy")["files"]
    expected = np.load(shared / "golden" / "vitcod_deit_tiny_global_tokens_0.95.npy")
    assert np.array_equal(found["global_tokens"], expected)
    assert found["global_token_threshold"] == 50


def test_two_masks_and_a_third_of_another_shape(cli: Cli, tmp_path: Path) -> None:
    """One keeps all that the other does, and as much again."""
    more = KEEP.copy()
    more.ravel()[np.flatnonzero(~KEEP.ravel())[: KEEP.sum()]] = True
    for name, keep in (("one", KEEP), ("two", more), ("three", KEEP[:1])):
        write_mask(tmp_path / f"{name}.safetensors", Mask(keep, {}, token_order(keep, 8)))
    names = [str(tmp_path / f"{name}.safetensors") for name in ("one", "two", "three")]
    found = facts(cli, *names)
    assert [one["polarized"] for one in found["files"]] == [True] * 3
    assert found["overlaps"] == [{"files": names[:2], "of_all": 0.5, "of_first": 1.0, "of_second": 0.5}]


def test_a_map(cli: Cli, tmp_path: Path, make_map: MakeMap) -> None:
    attention = make_map()
    path = tmp_path / "map.safetensors"
    write_attention_map(path, AttentionMap(attention, 7, {"num_prefix_tokens": 2}, np.zeros_like(attention)))
    (found,) = facts(cli, path)["files"]
    entropy = -(attention.astype(np.float64) * np.log2(np.maximum(attention.astype(np.float64), 1e-300))).sum(-1)
    assert found["entropy"] == pytest.approx(entropy.mean((-2, -1)).tolist())
    assert found["images"] == 7
    assert found["importance"]
    for cut, sparsity in found["info_cuts"].items():
        assert sparsity == pytest.approx(1 - keep_prefix(info_mask(attention, float(cut)), 2).mean())


def test_entropy() -> None:
    rows = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]], np.float32)
    assert row_entropy(rows[None, None]).tolist() == [[[0, 2, 1]]]


def test_a_sparse_low_rank_checkpoint(cli: Cli, tmp_path: Path, tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config.changed(svd_type="mix_head_fc_qk"))
    set_keep_mask(model, torch.from_numpy(KEEP | np.eye(17, dtype=np.bool_)))
    path = tmp_path / "sparse.safetensors"
    save_model(path, model, {"made_by": "a test"})
    (found,) = facts(cli, path)["files"]
    assert found["layout"] == "vitcod"
    assert found["model_config"]["svd_type"] == "mix_head_fc_qk"
    assert found["made"]["made_by"] == "a test"
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["sparsity"] == pytest.approx(1 - (KEEP | np.eye(17, dtype=np.bool_)).mean())
    assert set(found["kept_energy"]) == {"q", "k"}
    assert all(len(blocks) == 2 for blocks in found["kept_energy"].values())


def test_plain_weights(cli: Cli, tmp_path: Path) -> None:
    save_file(
        {"a.weight": torch.zeros(3, 4), "b.weight": torch.zeros(2, dtype=torch.float16)},
        tmp_path / "w.safetensors",
    )
    (found,) = facts(cli, tmp_path / "w.safetensors")["files"]
    assert found["by_dtype"] == {"float32": 12, "float16": 2}
    assert found["layout"] == "timm"
    assert found["sparsity"] is None


def test_energy_that_an_auto_encoder_keeps() -> None:
    """Of three equal heads, one is enough; of three orthogonal ones it keeps a third."""
    encoder, decoder = torch.full((1, 3), 1 / 3), torch.ones(3, 1)
    names = {"encoder_q.weight": encoder, "decoder_q.weight": decoder}
    equal, different = torch.randn(4, 12), torch.eye(12)
    for q, expected in ((torch.cat([equal] * 3), 1.0), (different, 1 / 3)):
        weights = {f"blocks.0.attn.{name}": tensor for name, tensor in names.items()}
        for projection in ({"qkv": torch.cat([q, torch.zeros(24, 12)])}, {"q_proj": q}):
            own = {f"blocks.0.attn.{name}.weight": tensor for name, tensor in projection.items()}
            assert kept_energy({**weights, **own}) == {"q": [pytest.approx(expected, abs=1e-6)]}


def test_what_inspect_refuses(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert "does not exist" in cli("inspect", str(tmp_path / "none")).error
    assert "seems to be an image" in cli("inspect", str(tmp_path / "x.png")).error
    assert "is neither a checkpoint, an attention map nor a mask" in cli("inspect", str(tmp_path / "x.npy")).error
    assert "FILE" in cli("inspect", str(tmp_path / "x.txt")).error
    assert "is a folder" in cli("inspect", str(tmp_path)).error
    write_mask(tmp_path / "m.safetensors", Mask(KEEP))
    assert "--threshold 'x'" in cli("inspect", str(tmp_path / "m.safetensors"), "--threshold", "x").error
