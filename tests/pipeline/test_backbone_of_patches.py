"""A backbone as DINOv2's, with registers, without a head, at another size than its weights: all steps as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_line import Cli
from safetensors.torch import save_file

import vitcod_cli

MODEL = ("--model", "vit_small_patch14_reg4_dinov2", "--num-classes", 0, "--img-size", 70)
KWARGS = {"depth": 2, "embed_dim": 48, "num_heads": 3}
QUICK = ("--calibrate-steps", 5, "--calibrate-images", 12, "--workers", 0)
FIGURES = ("cosine", "relative_error", "patch_cosine", "patch_error", "same_nearest", "neighbour_overlap")


@pytest.fixture
def pictures(image_folder: Path, tmp_path: Path) -> tuple[object, ...]:
    """Options for pictures in one folder."""
    flat = tmp_path / "pictures"
    flat.mkdir()
    for number, path in enumerate(sorted(image_folder.glob("*/*/*.jpg"))):
        shutil.copy(path, flat / f"{number}.jpg")
    return ("--data-path", flat, "--dataset", "images")


@pytest.fixture
def weights(tmp_path: Path) -> tuple[object, ...]:
    """Options for weights as timm has them, of 518 pixels and without a word of what they are."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **KWARGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    save_file(model.state_dict(), tmp_path / "dinov2.safetensors")
    kwargs = (f"{name}={value}" for name, value in KWARGS.items())
    return (*MODEL, "--model-kwargs", *kwargs)


def result_of(cli: Cli, *words: object) -> dict[str, Any]:
    outcome = cli(*words, "--json")
    assert outcome.code == 0, outcome.err
    assert "Acc@" not in outcome.out + outcome.err
    assert "nan" not in outcome.out.lower()
    result: dict[str, Any] = json.loads(outcome.out)
    return result


def test_step_by_step(cli: Cli, pictures: tuple[object, ...], weights: tuple[object, ...]) -> None:
    train = (*QUICK, "--epochs", 0)
    low = ("finetune-lowrank", "--init-from", "dinov2.safetensors", *weights, *pictures, *train)
    assert result_of(cli, *low, "--align-steps", 2, "--output-dir", "low")["images"] == 33 // 5
    mapped = (
        "dump-attn",
        "--checkpoint",
        "low/last.safetensors",
        *pictures,
        "--importance-images",
        8,
        "--workers",
        0,
    )
    assert cli(*mapped).code == 0
    masked = cli("gen-mask", "--attn-map", "attn.safetensors", "--sparsity", 0.6, "--allocate")
    assert masked.code == 0, masked.err
    mask = ("--mask", "allocated_0.60.safetensors", "--distill-from", "dinov2.safetensors")
    sparse = ("finetune-sparse", "--init-from", "low/last.safetensors", *mask, *pictures, *train)
    trained = result_of(cli, *sparse, "--output-dir", "sparse")
    words = ("eval", "--checkpoint", "sparse/last.safetensors", "--against", "dinov2.safetensors", *pictures)
    dense, found = result_of(cli, *words, "--workers", 0)["models"]
    assert found["relative_error"] == pytest.approx(trained["relative_error"], rel=1e-4)
    assert found["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert [dense[name] for name in FIGURES] == pytest.approx((1, 0, 1, 0, 1, 1), abs=1e-6)
    assert 0 < found["patch_error"] < 1
    assert 0 <= found["same_nearest"] <= 1


def test_compress_and_sweep(cli: Cli, pictures: tuple[object, ...], weights: tuple[object, ...]) -> None:
    words = ("--init-from", "dinov2.safetensors", *weights, *pictures, *QUICK)
    compressed = cli("compress", *words, "--align-steps", 2, "--sparsity", 0.6, "--output-dir", "out")
    assert compressed.code == 0, compressed.err
    [*_, final] = json.loads(Path("out/compress.json").read_text())["results"]
    for text in (f"{final['patch_cosine']:.4f}", f"{final['patch_error']:.1%}", f"{final['same_nearest']:.1%}"):
        assert text in compressed.out
    evaluated = ("eval", "--checkpoint", "out/model.safetensors", "--against", "dinov2.safetensors", *pictures)
    [_, found] = result_of(cli, *evaluated, "--workers", 0)["models"]
    assert [found[name] for name in FIGURES] == pytest.approx([final[name] for name in FIGURES], rel=1e-4)
    swept = cli("sweep", *words, "--sparsities", 0.6, 0.8, "--methods", "info", "--output-dir", "curve")
    assert swept.code == 0, swept.err
    assert "info_0.80 is left out: --sparsity 0.8 can't be reached" in swept.err
    assert max(map(len, swept.out.splitlines())) <= 80
    [*_, point] = json.loads(Path("curve/sweep.json").read_text())["results"]
    assert point["name"] == "info_0.60"
    assert f"{point['patch_cosine']:.4f}" in swept.out
    assert str(point["patch_error"]) in Path("curve/sweep.csv").read_text()
    for folder in ("out", "curve"):
        assert cli("report", folder).code == 0
        page = Path(f"{folder}/report.html").read_text(encoding="utf-8")
        assert "same nearest" in page.partition("Terms")[0]


def test_a_sparsity_that_registers_forbid(
    cli: Cli, pictures: tuple[object, ...], weights: tuple[object, ...]
) -> None:
    """Of 30 tokens five are prefix: 275 of 900 entries are kept. Told before anything is made."""
    outcome = cli("compress", "--init-from", "dinov2.safetensors", *weights, *pictures, "--output-dir", "out")
    assert "--sparsity 0.9 can't be reached" in outcome.error
    assert "0.6944 at most" in outcome.error
    assert not Path("out").exists()
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=70, **KWARGS)
    with pytest.raises(vitcod_cli.VitcodError, match=r"0\.6944 at most"):
        vitcod_cli.compress(model, [torch.randn(4, 3, 70, 70)], sparsity=0.7, model_kwargs=KWARGS)
