"""Checkpoints of every layout are read; what could run code, or is none, is refused in one sentence."""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitcod_cli.artifacts import files
from vitcod_cli.artifacts.architecture import architecture_in_words, img_size_of
from vitcod_cli.artifacts.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vitcod_cli.artifacts.files import sha256_of
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.artifacts.safetensors_file import write_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.reporting import SilentReporter

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
CONFIG = ModelConfig(
    model="deit_tiny_patch16_224",
    num_classes=5,
    img_size=(32, 48),
    svd_type="mix_head_fc_q",
    model_kwargs={"depth": 1},
)


def weights(classes: int = 5) -> dict[str, Tensor]:
    """The clues that a state dict has for us; not a whole model."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, 24),
        "pos_embed": (1, 17, 24),
        "patch_embed.proj.weight": (24, 3, 8, 8),
        "blocks.0.attn.qkv.weight": (72, 24),
        "blocks.0.attn.encoder_q.weight": (2, 3),
        "blocks.1.attn.qkv.weight": (72, 24),
        "head.weight": (classes, 24),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> bool:
    found = checkpoint.state_dict
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def refusal(path: Path) -> str:
    with pytest.raises(VitcodError) as error:
        read_checkpoint(str(path), "--init-from")
    message = str(error.value)
    assert message.startswith(f"--init-from {path} ")
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_ours_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights().items()}
    write_checkpoint(path, wrapped, CONFIG, {"epoch": 3, "acc1": 76.5, "model_config": "not this one"})
    checkpoint = read_checkpoint(str(path), "--checkpoint")
    assert same(checkpoint, weights())
    assert checkpoint.config == CONFIG
    assert (checkpoint.layout, checkpoint.info) == ("vitcod", {"epoch": 3, "acc1": 76.5})
    assert checkpoint.sha256 == sha256_of(path)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ""])
def test_plain_weights_under_any_name(tmp_path: Path, suffix: str, wrapper: str) -> None:
    path = tmp_path / f"x{suffix}"
    wrapped = {wrapper + name: tensor for name, tensor in weights().items()}
    if suffix == ".safetensors":
        save_file(wrapped, path)
    else:
        torch.save(wrapped, path)
    checkpoint = read_checkpoint(str(path), "--checkpoint")
    assert same(checkpoint, weights())
    assert (checkpoint.config, checkpoint.layout, checkpoint.info) == (None, "timm", {})


@pytest.mark.parametrize("zipped", [True, False])
def test_published_checkpoint_with_all_that_training_leaves_in_it(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    parameters = [nn.Parameter(tensor.clone()) for tensor in weights().values()]
    optimizer = torch.optim.AdamW(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    args = argparse.Namespace(
        model="deit_small_patch16_224",
        svd_type=None,
        lr=5e-4,
        opt_betas=(0.9, 0.999),
        device="cuda",
        output_dir=pathlib.PosixPath("runs/1"),
        max_accuracy=np.float64(79.9),
        mask_path="masks/info_0.9.npy",
    )
    content = {
        "model": weights(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-4], "t_initial": 100, "noise_range_t": None},
        "epoch": 99,
        "model_ema": weights(),
        "scaler": {},
        "args": args,
        "best": np.float32(1.5),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(str(path), "--checkpoint", use_ema=False)
    assert same(checkpoint, weights())
    assert checkpoint.layout == "published"
    # The tensors say what args leave out or get wrong: an auto-encoder on Q, 5 classes, 4 x 4 patches of 8 pixels.
    assert checkpoint.config == ModelConfig(
        model="deit_small_patch16_224", num_classes=5, img_size=(32, 32), svd_type="mix_head_fc_q"
    )
    assert checkpoint.info["epoch"] == 99
    assert checkpoint.info["args"]["mask_path"] == "masks/info_0.9.npy"
    assert checkpoint.info["left_out"] == ["optimizer", "lr_scheduler", "model_ema", "best"]


def test_deits_own_and_timms_training_files(tmp_path: Path) -> None:
    torch.save({"model": weights()}, tmp_path / "deit.pth")
    deit = read_checkpoint(str(tmp_path / "deit.pth"), "--checkpoint")
    assert same(deit, weights())
    assert (deit.config, deit.layout) == (None, "published")
    torch.save({"state_dict": weights(), "arch": "deit_tiny_patch16_224", "epoch": 3}, tmp_path / "timm.pth.tar")
    timm = read_checkpoint(str(tmp_path / "timm.pth.tar"), "--checkpoint")
    assert same(timm, weights())
    assert timm.config is not None
    assert (timm.config.model, timm.layout) == ("deit_tiny_patch16_224", "timm")


def test_published_files_of_the_shared_folder(shared: Path) -> None:
    checkpoint = read_checkpoint(str(shared / "weights" / "deit_tiny_lowrank_reference.pth"), "--checkpoint")
    assert checkpoint.config == ModelConfig(
        model="deit_tiny_patch16_224", num_classes=1000, img_size=(224, 224), svd_type="mix_head_fc_qk"
    )
    custom = read_checkpoint(str(GOLDEN / "heads4_q_reference.pth"), "--checkpoint")
    assert custom.config == ModelConfig(
        model="custom", num_classes=10, img_size=(112, 112), svd_type="mix_head_fc_q"
    )


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "old torch", "bare pickle", "in args"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, form: str) -> None:
    harm, path = tmp_path / "harm", tmp_path / "x.pth"
    content: Any = {"model": weights(), "extra": Malicious(harm)}
    if form == "in args":
        content = {"model": weights(), "args": argparse.Namespace(model="x", extra=Malicious(harm))}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Malicious(harm)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "old torch")
    message = refusal(path)
    if form != "bare pickle":
        assert "mkdir" in message
        assert "could run code" in message
    assert not harm.exists()


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth")
    assert "torch.nn.modules.linear.Linear" in message
    assert "state_dict()" in message


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    assert "does not exist" in refusal(path)
    torch.save({"model": weights()}, path)
    whole = path.read_bytes()
    for content in (
        b"text",
        b"\x80",
        b"\x80\x02}",
        bytes(range(256)) * 10,
        whole[:100],
        whole[: len(whole) // 2],
    ):
        path.write_bytes(content)
        assert "not a" in refusal(path)
    for content in (
        {},
        [],
        3,
        {"a": 1},
        {"model": {"x": 1}},
        {"model": {}},
        {"state_dict": [1]},
        {1: torch.ones(1)},
    ):
        torch.save(content, path)
        assert "no model weights" in refusal(path)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 2, 2), dtype=bool))
    assert "a published mask; give it as --mask" in refusal(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    assert ".npz archive" in refusal(tmp_path / "x.npz")
    assert "is a folder" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    (tmp_path / "x.safetensors").write_bytes(b"no tensors here, only words")
    assert "not a whole safetensors" in refusal(tmp_path / "x.safetensors")


def test_ours_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = CONFIG.to_dict()
    broken = [
        {},
        {"model_config": None},
        {"model_config": {"model": "x"}},
        {"model_config": {**good, "img_size": [1]}},
        {"model_config": {**good, "img_size": ["a", "b"]}},
        {"model_config": {**good, "svd_type": "mix_everything"}},
        {"model_config": {**good, "num_classes": "5"}},
        {"model_config": {**good, "model_kwargs": []}},
    ]
    for info in broken:
        write_safetensors(path, weights(), "checkpoint", info)
        assert "doesn't say which model it holds" in refusal(path)
    write_safetensors(path, weights(), "mask", {})
    assert "it seems to be a vitcod mask; give it as --mask" in refusal(path)
    write_safetensors(path, weights(), "run-state", {})
    assert "it seems to be a vitcod run state; the weights are in best.safetensors" in refusal(path)


def test_config_survives_json(tmp_path: Path) -> None:
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert ModelConfig.from_dict({**CONFIG.to_dict(), "of a newer version": 1}) == CONFIG


@pytest.mark.parametrize(
    ("tokens", "prefix"),
    [
        (17, {"cls_token": 1}),
        (18, {"cls_token": 1, "dist_token": 1}),
        (16, {}),
        (16, {"cls_token": 1}),
        (21, {"cls_token": 1, "reg_token": 4}),
        (16, {"cls_token": 1, "reg_token": 4}),
    ],
)
def test_image_size_from_position_embeddings(tokens: int, prefix: dict[str, int]) -> None:
    state_dict = {name: torch.zeros(1, count, 24) for name, count in prefix.items()}
    state_dict |= {"pos_embed": torch.zeros(1, tokens, 24), "patch_embed.proj.weight": torch.zeros(24, 3, 8, 8)}
    assert img_size_of(state_dict) == (32, 32)
    state_dict["pos_embed"] = torch.zeros(1, 8, 24)
    assert img_size_of(state_dict) is None


def test_architecture_in_words() -> None:
    assert architecture_in_words(weights()) == "2 blocks of width 24 and patches of 8 pixels"
    assert "no Vision Transformer" in architecture_in_words({"conv1.weight": torch.zeros(1)})


def averaged(tiny_config: ModelConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Raw weights and their moving average."""
    torch.manual_seed(0)
    raw = build_model(tiny_config).state_dict()
    return raw, {name: value + 1 for name, value in raw.items()}


class Told(SilentReporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("layout", ["timm", "deit", "deit in parallel"])
@pytest.mark.parametrize(("use_ema", "expected"), [(None, "EMA"), (True, "EMA"), (False, "raw")])
def test_which_weights_of_a_file_that_has_both(
    tmp_path: Path, tiny_config: ModelConfig, layout: str, use_ema: bool | None, expected: str
) -> None:
    """timm's train.py and DeiT's main.py save the moving average beside the weights; timm loads it."""
    raw, ema = averaged(tiny_config)
    if layout == "timm":
        content = {
            "epoch": 3,
            "arch": "deit_tiny_patch16_224",
            "state_dict": raw,
            "state_dict_ema": ema,
            "metric": 81.0,
        }
    else:
        prefix = "module." if layout == "deit in parallel" else ""
        content = {"model": raw, "model_ema": {prefix + name: value for name, value in ema.items()}, "epoch": 3}
    torch.save(content, tmp_path / "model_best.pth.tar")
    reporter = Told()
    checkpoint = read_checkpoint(tmp_path / "model_best.pth.tar", "--checkpoint", reporter, use_ema)
    assert torch.equal(checkpoint.state_dict["head.weight"], (ema if expected == "EMA" else raw)["head.weight"])
    assert checkpoint.layout == ("timm" if layout == "timm" else "published")
    [line] = reporter.lines
    assert f"the {expected} weights are used" in line
    assert ("--no-use-ema" if expected == "EMA" else "--use-ema") in line
    left = {"state_dict", "model"} if expected == "EMA" else {"state_dict_ema", "model_ema"}
    assert left & set(checkpoint.info["left_out"]), "what was not used is left out"


def test_a_tensor_beside_the_weights_is_left_out(tmp_path: Path, tiny_config: ModelConfig) -> None:
    torch.save({"model": averaged(tiny_config)[0], "counts": torch.arange(3), "scaler": {}}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth", "--checkpoint").info["left_out"] == ["counts"]


def test_ema_weights_that_are_not_there(tmp_path: Path, tiny_config: ModelConfig) -> None:
    raw, _ = averaged(tiny_config)
    torch.save({"model": raw, "model_ema": None}, tmp_path / "none.pth")
    torch.save(raw, tmp_path / "plain.pth")
    save_file(raw, tmp_path / "plain.safetensors")
    for name in ("none.pth", "plain.pth", "plain.safetensors"):
        reporter = Told()
        with pytest.raises(VitcodError, match=rf"^--use-ema: --checkpoint .*{name} holds no EMA weights"):
            read_checkpoint(tmp_path / name, "--checkpoint", reporter, True)
        read_checkpoint(tmp_path / name, "--checkpoint", reporter, False)
        read_checkpoint(tmp_path / name, "--checkpoint", reporter)
        assert not reporter.lines
    torch.save({"model": raw, "model_ema": 0.9}, tmp_path / "odd.pth")
    with pytest.raises(VitcodError, match="holds no model weights"):
        read_checkpoint(tmp_path / "odd.pth", "--checkpoint")


def test_a_file_is_hashed_when_asked_and_once(
    tmp_path: Path, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plain.pth"
    torch.save(averaged(tiny_config)[0], path)
    read: list[str] = []
    digest = hashlib.sha256

    def counted(*arguments: Any) -> Any:
        read.append("")
        return digest(*arguments)

    monkeypatch.setattr(files.hashlib, "sha256", counted)
    checkpoint = read_checkpoint(path, "--checkpoint")
    assert not read, "eval needs no checksum"
    first = checkpoint.sha256
    assert checkpoint.sha256 == provenance("test", str(path))["made_from"] == first
    assert len(read) == 1
    path.write_bytes(path.read_bytes() + b" ")
    assert sha256_of(path) != first, "another file now"
