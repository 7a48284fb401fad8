"""``vitcod export``: what other programs make of its files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command_line import Cli, the_error
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import vitcod_cli.export.program as program
import vitcod_cli.model.kernels.planned as planned
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import SilentReporter

LOW_RANK = "mix_head_fc_qk"


def random_model(config: ModelConfig, mask: bool = False) -> VisionTransformer:
    """Weights of a size that makes every part matter."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    if mask:
        shape = attention_shape(model)
        set_keep_mask(model, (torch.rand(shape) < 0.3) | torch.eye(shape[-1], dtype=torch.bool))
    return model


def saved(config: ModelConfig, mask: bool = False) -> VisionTransformer:
    """The random model, which is in ``model.safetensors`` too."""
    model = random_model(config, mask)
    save_model("model.safetensors", model, {})
    return model


def export(cli: Cli, output: str, *words: object) -> dict[str, Any]:
    outcome = cli("export", "--checkpoint", "model.safetensors", "--output", output, "--json", *words)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def images_of(batch: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def logits_of(model: VisionTransformer, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(images)
        return logits


def run_onnx(path: str, images: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def test_a_program_runs_without_us(cli: Cli, tiny_config: ModelConfig) -> None:
    """Low-rank and masked, any batch size, in a process that imports neither vitcod nor timm."""
    model = saved(tiny_config.changed(svd_type=LOW_RANK), mask=True)
    outcome = cli("export", "--checkpoint", "model.safetensors", "--output", "model.pt2")
    assert outcome.code == 0, outcome.err
    assert outcome.out == "model.pt2\n"
    assert "Takes float32 images [B, 3, 32, 32], gives logits [B, 5]." in outcome.err
    batches = {str(size): images_of(size).numpy() for size in (1, 2, 5)}
    np.savez("images.npz", **batches)
    script = """
import sys, numpy, torch
extra = {"vitcod.json": ""}
run = torch.export.load("model.pt2", extra_files=extra).module()
numpy.savez("logits.npz", **{k: run(torch.from_numpy(x)).detach() for k, x in numpy.load("images.npz").items()})
assert not {"vitcod_cli", "timm"} & set(sys.modules)
print(extra["vitcod.json"])
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["model_config"]["model"] == "deit_tiny_patch16_224"
    assert about["sparsity"] == pytest.approx(0.7, abs=0.05)
    assert len(about["made_from"]) == 64
    found = np.load("logits.npz")
    for size, images in batches.items():
        expected = logits_of(model, torch.from_numpy(images))
        torch.testing.assert_close(torch.from_numpy(found[size]), expected, rtol=1e-4, atol=1e-4)


KINDS = {
    "class token": {},
    "distilled": {"model": "deit_tiny_distilled_patch16_224"},
    "norm on Q and K": {"qk_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "no bias": {"qkv_bias": False},
    "rotary": {"model": "eva02_tiny_patch14_224"},
    "rotary, registers": {"model": "vit_small_patch16_dinov3"},
    "relative position": {"model": "beit_base_patch16_224"},
}


def config_of(kind: str, tiny: ModelConfig) -> ModelConfig:
    kwargs = dict(KINDS[kind])
    name = str(kwargs.pop("model", "vit_tiny_patch16_224"))
    return tiny.changed(model=name, model_kwargs={**tiny.model_kwargs, **kwargs}, svd_type=LOW_RANK)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_becomes_a_program(cli: Cli, kind: str, tiny_config: ModelConfig) -> None:
    model = saved(config_of(kind, tiny_config), mask=True)
    assert export(cli, "model.pt2")["max_difference"] < 1e-3
    images = images_of(3)
    found = torch.export.load("model.pt2").module()(images)
    torch.testing.assert_close(found.detach(), logits_of(model, images), rtol=1e-4, atol=1e-4)


def test_onnx(cli: Cli, tiny_config: ModelConfig) -> None:
    model = saved(tiny_config.changed(svd_type=LOW_RANK), mask=True)
    found = export(cli, "model.onnx")
    assert found["bytes"] == Path("model.onnx").stat().st_size
    assert [path.name for path in Path().iterdir()].count("model.onnx.data") == 0
    for size in (1, 4):
        images = images_of(size)
        torch.testing.assert_close(run_onnx("model.onnx", images), logits_of(model, images), rtol=1e-4, atol=1e-4)
    file = onnx_file("model.onnx")
    (about,) = file.metadata_props
    assert (about.key, json.loads(about.value)["made_by"]) == ("vitcod", "vitcod export")
    for value in (file.graph.input[0], file.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    # Neither it nor its nodes tell where on this machine it was made.
    content = Path("model.onnx").read_bytes()
    assert str(Path(program.__file__).parent).encode() not in content
    assert b"site-packages" not in content


def onnx_file(path: str) -> Any:
    return pytest.importorskip("onnx").load(path)


def operators(path: str) -> Counter[tuple[str, str]]:
    return Counter((node.domain, node.op_type) for node in onnx_file(path).graph.node)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("portable", [False, True])
def test_onnx_with_and_without_the_fused_operator(
    cli: Cli, kind: str, mask: bool, portable: bool, tiny_config: ModelConfig
) -> None:
    model = saved(config_of(kind, tiny_config), mask=mask)
    export(cli, "model.onnx", *(["--portable"] if portable else []))
    images = images_of(3)
    torch.testing.assert_close(run_onnx("model.onnx", images), logits_of(model, images), rtol=1e-4, atol=1e-4)
    found = operators("model.onnx")
    assert found["com.microsoft", "MultiHeadAttention"] == (0 if portable else 2)
    assert not portable or {domain for domain, _ in found} == {""}


def test_an_onnx_file_of_a_compressed_model_is_smaller_than_the_dense_one(cli: Cli) -> None:
    """Masks are bits, Q and K low-rank factors; at a real size, or it would be all names."""
    config = ModelConfig(
        model="deit_tiny_patch16_224", model_kwargs={"depth": 2}, num_classes=7, img_size=(224, 224)
    )
    sizes = {}
    for name, svd_type, mask in (("dense", "none", False), ("masked", "none", True), ("both", LOW_RANK, True)):
        saved(config.changed(svd_type=svd_type), mask=mask)
        found = export(cli, f"{name}.onnx")
        sizes[name] = found["bytes"]
        assert found["dense_bytes"] < sizes["dense"] < 1.02 * found["dense_bytes"]
    entries = 2 * 3 * 197 * 197
    assert sizes["masked"] - sizes["dense"] < entries / 8 * 1.2
    assert sizes["both"] < sizes["dense"]


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_program_that_takes_bytes(cli: Cli, ending: str, tiny_config: ModelConfig) -> None:
    """It normalises as ``eval`` does: with the model's own figures, 0.5 for this one."""
    model = saved(tiny_config.changed(model="vit_tiny_patch16_224"))
    found = export(cli, f"model.{ending}", "--input", "uint8")
    assert found["input"]["mean"] == [0.5, 0.5, 0.5]
    images = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = logits_of(model, (images / 255 - 0.5) / 0.5)
    run = torch.export.load("model.pt2").module() if ending == "pt2" else lambda x: run_onnx("model.onnx", x)
    torch.testing.assert_close(run(images).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_fixed_batch_leaves_out_what_the_mask_prunes(
    cli: Cli, ending: str, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is expected to pay, which is made to be here; the operator says so otherwise."""
    for name, value in {"MIN_TOKENS": 0, "CALL": 10.0, "ROW": 0.0, "MASKED": 100.0}.items():
        monkeypatch.setattr(planned, name, value)
    model = saved(tiny_config, mask=True)
    output = f"model.{ending}"
    outcome = cli("export", "--checkpoint", "model.safetensors", "--output", output)
    assert "would save time with a fixed --batch-size of 1 or more." in outcome.err
    # Of the second block the head reads one row, which there is nothing to plan for.
    assert export(cli, output, "--batch-size", 3, "--overwrite")["planned_blocks"] == 1
    images = images_of(3)
    run = torch.export.load(output).module() if ending == "pt2" else lambda x: run_onnx(output, x)
    torch.testing.assert_close(run(images).detach(), logits_of(model, images), rtol=1e-4, atol=1e-4)


def test_arrays(cli: Cli, tiny_config: ModelConfig) -> None:
    model = saved(tiny_config.changed(svd_type=LOW_RANK), mask=True)
    export(cli, "model.npz")
    with np.load("model.npz", allow_pickle=False) as found:
        state = model.state_dict()
        names = [name for name in state if not name.endswith(".keep")]
        assert set(found.files) == {*names, "keep", "head_sparsity", "global_tokens", "vitcod"}
        for name in names:
            np.testing.assert_array_equal(found[name], state[name].numpy())
        np.testing.assert_array_equal(found["keep"][1], state["blocks.1.attn.keep"].numpy())
        assert json.loads(str(found["vitcod"]))["model_config"]["svd_type"] == LOW_RANK
    refused = cli("eval", "--checkpoint", "model.npz", "--data-path", ".")
    assert refused.code == 1
    assert ".npz archive" in the_error(refused)


@pytest.mark.parametrize("kind", ["class token", "distilled", "no bias"])
def test_weights_for_timm(cli: Cli, kind: str, tiny_config: ModelConfig) -> None:
    """The line on stderr, typed as it stands, is the low-rank model; vitcod reads the file too."""
    model = saved(config_of(kind, tiny_config))
    outcome = cli("export", "--checkpoint", "model.safetensors", "--output", "folded.safetensors")
    assert outcome.code == 0, outcome.err
    again = eval(outcome.err.splitlines()[-1], {"timm": timm}).eval()
    images, none = images_of(2), SilentReporter()
    torch.testing.assert_close(logits_of(again, images), logits_of(model, images), rtol=1e-4, atol=1e-4)
    ours = load_model(ModelSettings(), "folded.safetensors", flag="", reporter=none).eval()
    torch.testing.assert_close(logits_of(ours, images), logits_of(again, images))


def test_a_model_without_a_head_gives_features(cli: Cli, tiny_config: ModelConfig) -> None:
    saved(tiny_config.changed(num_classes=0))
    outcome = cli("export", "--checkpoint", "model.safetensors", "--output", "model.pt2", "--batch-size", 2)
    assert "Takes float32 images [2, 3, 32, 32], gives features [2, 24]." in outcome.err
    assert torch.export.load("model.pt2").module()(images_of(2)).shape == (2, 24)


def test_what_timm_has_no_place_for(cli: Cli, tiny_config: ModelConfig) -> None:
    words = ("export", "--checkpoint", "model.safetensors", "--output", "folded.safetensors")
    saved(tiny_config, mask=True)
    assert "no place for the mask" in the_error(cli(*words))
    saved(config_of("norm on Q and K", tiny_config))
    assert "behind a norm on Q and K" in the_error(cli(*words))
    assert "--batch-size is for programs" in the_error(cli(*words, "--batch-size", 2))
    assert "--portable is for .onnx files" in the_error(cli(*words, "--portable"))
    assert "--input is for programs" in the_error(cli(*words, "--input", "uint8"))
    assert not Path("folded.safetensors").exists()


def test_mistakes(cli: Cli, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--checkpoint is needed" in the_error(cli("export", "--output", "model.pt2"))
    words = ("export", "--checkpoint", tiny_checkpoint)
    assert "--output is needed" in the_error(cli(*words))
    assert "doesn't end in .pt2" in the_error(cli(*words, "--output", "model.bin"))
    assert "--batch-size must be at least 1" in the_error(cli(*words, "--output", "a.pt2", "--batch-size", 0))
    Path("here.pt2").write_text("mine")
    assert "--overwrite" in the_error(cli(*words, "--output", "here.pt2"))
    assert Path("here.pt2").read_text() == "mine"
    monkeypatch.setattr(program, "ONNX_BYTES", 10_000)
    assert "export to .pt2" in the_error(cli(*words, "--output", "model.onnx"))
    monkeypatch.setattr(program, "find_spec", lambda name: None)
    assert "needs onnx and onnxscript; pip install 'vitcod[onnx]'" in the_error(
        cli(*words, "--output", "model.onnx")
    )


def test_a_program_that_computes_something_else_is_not_written(
    cli: Cli, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.export.load

    class Wrong:
        def __init__(self, file: Any) -> None:
            self._run = load(file).module()

        def module(self) -> Any:
            return lambda images: self._run(images) + 0.1

    monkeypatch.setattr(torch.export, "load", Wrong)
    with pytest.raises(RuntimeError, match="differ from the model's by"):
        cli("export", "--checkpoint", tiny_checkpoint, "--output", "model.pt2")
    assert [path.name for path in Path().iterdir()] == [tiny_checkpoint.name]


def test_a_program_is_no_checkpoint(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    assert cli("export", "--checkpoint", tiny_checkpoint, "--output", "model.pt2").code == 0
    Path("model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")  # how such a file begins
    for name in ("model.pt2", "model.onnx"):
        error = the_error(cli("dump-attn", "--checkpoint", name, "--data-path", image_folder))
        assert "an exported program; give the checkpoint that it was made from" in error
