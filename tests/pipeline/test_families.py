"""Every family of models by the command line: weights as timm has them, at another size, to a finished program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_line import Cli, the_error
from model.small_models import fill
from safetensors.torch import save_file

from vitcod_cli.model.layers import attentions, keep_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET

SMALL = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_224": {},
    "vit_small_patch16_dinov3": {},
    "vit_pe_core_tiny_patch16_384": {},
    "beit_base_patch16_224": {},
    "vit_relpos_small_patch16_224": {},
}
NO_AUTO_ENCODER: dict[str, dict[str, Any]] = {
    "vit_small_patch16_rope_mixed_224": {},
    "vit_5b_patch16_sapiens2": {"num_kv_heads": 2},
}


def weights_of(name: str, kwargs: dict[str, Any], size: int) -> tuple[object, ...]:
    """Saves ``dense.safetensors`` as timm would; options for it."""
    torch.manual_seed(0)
    arguments = {**SMALL, **kwargs}
    model = timm.create_model(name, num_classes=5, img_size=size, **arguments)
    fill(model)
    save_file(model.state_dict(), "dense.safetensors")
    words = (f"{key}={value}" for key, value in arguments.items())
    return ("--init-from", "dense.safetensors", "--model", name, "--model-kwargs", *words)


def compressed(cli: Cli, weights: tuple[object, ...], folder: Path, *words: object) -> list[dict[str, Any]]:
    quick = ("--calibrate-steps", 4, "--calibrate-images", 12, "--align-steps", 3, "--workers", 0, "--via", 0)
    data = ("--data-path", folder, "--img-size", 32, "--sparsity", 0.3, "--output-dir", "out")
    outcome = cli("compress", *weights, *quick, *data, *words)
    assert outcome.code == 0, outcome.err
    results: list[dict[str, Any]] = json.loads(Path("out/compress.json").read_text())["results"]
    return results


@pytest.mark.parametrize("name", [*FAMILIES, *NO_AUTO_ENCODER])
def test_from_weights_to_a_program(cli: Cli, image_folder: Path, name: str) -> None:
    kwargs = {**FAMILIES, **NO_AUTO_ENCODER}[name]
    # Tables of relative positions by a network or of one size are not resampled by timm.
    weights = weights_of(name, kwargs, 32 if "relpos" in name else 48)
    words = ("--svd-type", "none") if name in NO_AUTO_ENCODER else ()
    [*_, final] = compressed(cli, weights, image_folder, *words)
    assert final["sparsity"] == pytest.approx(0.3, abs=0.01)
    model = load_model(ModelSettings(), "out/model.safetensors", flag="", reporter=QUIET)
    keep = keep_mask(model)
    assert keep is not None
    assert float((~keep).float().mean()) == pytest.approx(0.3, abs=0.01)
    coded = {layer.svd_type for layer in attentions(model)}
    assert coded == {"none" if name in NO_AUTO_ENCODER else "mix_head_fc_qk"}
    exported = cli("export", "--checkpoint", "out/model.safetensors", "--output", "model.onnx")
    assert exported.code == 0, exported.err
    evaluated = ("eval", "--checkpoint", "out/model.safetensors", "model.onnx", "--data-path", image_folder)
    outcome = cli(*evaluated, "--workers", 0, "--json")
    assert outcome.code == 0, outcome.err
    ours, program = json.loads(outcome.out)["models"]
    assert program["agreement"] == 100
    assert program["loss"] == pytest.approx(ours["loss"], rel=1e-4)


@pytest.mark.parametrize("name", NO_AUTO_ENCODER)
def test_what_can_have_no_auto_encoder_is_told_before_anything_is_made(
    cli: Cli, image_folder: Path, name: str
) -> None:
    weights = weights_of(name, NO_AUTO_ENCODER[name], 32)
    data = ("--data-path", image_folder, "--img-size", 32, "--output-dir", "out")
    for command in ("compress", "finetune-lowrank"):
        assert "can have no head auto-encoder: " in the_error(cli(command, *weights, *data))
        assert not Path("out").exists()


@pytest.mark.parametrize("name", ["eva02_base_patch14_224", "beit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_weights_for_timm(cli: Cli, image_folder: Path, name: str) -> None:
    """The low-rank model, folded, where timm has a place for it; the reason where a bias on K is left."""
    weights = weights_of(name, FAMILIES[name], 32)
    data = ("--data-path", image_folder, "--img-size", 32, "--workers", 0, "--output-dir", "low")
    calibrated = cli("finetune-lowrank", *weights, *data, "--epochs", 0, "--calibrate-steps", 0)
    assert calibrated.code == 0, calibrated.err
    outcome = cli("export", "--checkpoint", "low/best.safetensors", "--output", "folded.safetensors")
    assert outcome.code == 0, outcome.err
    again = eval(outcome.err.splitlines()[-1], {"timm": timm}).eval()
    ours = load_model(ModelSettings(), "low/best.safetensors", flag="", reporter=QUIET).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(images), ours(images), rtol=1e-3, atol=1e-3)
    for layer in attentions(ours):
        pair = layer.auto_encoder("k")
        assert pair is not None
        torch.nn.init.constant_(pair[1].bias, 0.5)
    from vitcod_cli.model.load import save_model

    save_model("biased.safetensors", ours, {})
    refused = the_error(cli("export", "--checkpoint", "biased.safetensors", "--output", "other.safetensors"))
    assert "leave a bias on K" in refused
