"""vitcod from Python: what its pages show, on a small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vitcod_cli
import vitcod_cli.pipeline.in_memory
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model, model_config
from vitcod_cli.model.layers import keep_mask

KWARGS = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
QUICK = {"calibrate_steps": 2, "calibrate_crops": 2, "calibrate_batch_size": 2}


@pytest.fixture
def dense() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32, **KWARGS)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    torch.manual_seed(0)
    vitcod_cli.save(build_model(tiny_config.changed(svd_type="mix_head_fc_qk")), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, vitcod_cli; dir(vitcod_cli); vitcod_cli.EvalOptions; vitcod_cli.VitcodError; "
        'sys.exit("torch" in sys.modules or "timm" in sys.modules)'
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(vitcod_cli.__file__).parents[1], check=False
        ).returncode
        == 0
    )


def test_all_that_it_names_is_there() -> None:
    assert set(vitcod_cli.__all__) == set(dir(vitcod_cli))
    for name in vitcod_cli.__all__:
        assert getattr(vitcod_cli, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = vitcod_cli.nonsense


@torch.no_grad()
def test_load_gives_a_model_ready_to_run(checkpoint: Path) -> None:
    model = vitcod_cli.load(checkpoint)
    assert not model.training
    image = Image.new("L", (50, 40), 128)
    images = model.transform(image)[None]
    assert images.shape == (1, 3, 32, 32)
    assert images.dtype == torch.float32
    raw = vitcod_cli.load(checkpoint, inference=False)
    torch.testing.assert_close(model(images), raw(images), rtol=1e-4, atol=1e-5)
    assert any("encoder_q" in name for name in raw.state_dict())
    assert not any("encoder_q" in name for name in model.state_dict()), "folded"


def test_timm_says_the_same_of_the_images(checkpoint: Path) -> None:
    model = vitcod_cli.load(checkpoint)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    theirs = timm.data.create_transform(**config, is_training=False)
    image = Image.effect_noise((60, 50), 80).convert("RGB")
    torch.testing.assert_close(theirs(image), model.transform(image), rtol=1e-5, atol=1e-5)


def test_a_loaded_model_is_saved_whole_or_not_at_all(checkpoint: Path, tmp_path: Path) -> None:
    vitcod_cli.save(vitcod_cli.load(checkpoint, inference=False), tmp_path / "again.safetensors")
    first, second = (vitcod_cli.load(path).state_dict() for path in (checkpoint, tmp_path / "again.safetensors"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(vitcod_cli.VitcodError, match="inference=False"):
        vitcod_cli.save(vitcod_cli.load(checkpoint), tmp_path / "folded.safetensors")
    assert not (tmp_path / "folded.safetensors").exists()


@pytest.mark.parametrize("allocate", [True, False])
def test_compress_a_timm_model_on_batches(dense: torch.nn.Module, allocate: bool, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    batches = (torch.randn(5, 3, 32, 32) for _ in range(100))
    model = vitcod_cli.compress(
        dense,
        batches,
        sparsity=0.6,
        allocate=allocate,
        min_density=0.35 if allocate else None,
        num_images=12,
        lowrank_calibration=vitcod_cli.LowRankCalibrationSettings(**{**QUICK, "calibrate_crops": 1}),
        calibration=vitcod_cli.CalibrationSettings(**QUICK),
        runtime=vitcod_cli.RuntimeSettings(threads=1),
        model_kwargs=KWARGS,
    )
    assert sum(1 for _ in batches) == 97, "only what is needed is read"
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    keep = keep_mask(model)
    assert keep is not None
    assert 1 - keep.float().mean() == pytest.approx(0.6, abs=0.01)
    assert not allocate or keep.float().mean(dim=(-2, -1)).min() >= 0.35
    assert model_config(model).svd_type == "mix_head_fc_qk"
    vitcod_cli.save(model, tmp_path / "compressed.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        again = vitcod_cli.load(tmp_path / "compressed.safetensors")(images)
        torch.testing.assert_close(again, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("via", "steps"), [((), [2]), ((0.4, 0.2, 0.8), [1, 1, 2])])
def test_compress_goes_to_a_sparse_mask_in_stages(
    dense: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, via: tuple[float, ...], steps: list[int]
) -> None:
    seen: list[tuple[float, int]] = []
    calibrate = vitcod_cli.pipeline.in_memory.calibrate

    def watched(student: Any, teacher: Any, images: Any, settings: Any, **rest: Any) -> Any:
        keep = keep_mask(student)
        assert keep is not None
        seen.append((round(1 - keep.float().mean().item(), 1), settings.calibrate_steps))
        return calibrate(student, teacher, images, settings, **rest)

    monkeypatch.setattr(vitcod_cli.pipeline.in_memory, "calibrate", watched)
    vitcod_cli.compress(
        dense,
        [torch.randn(6, 3, 32, 32)],
        sparsity=0.6,
        svd_type="none",
        via=via,
        calibration=vitcod_cli.CalibrationSettings(**{**QUICK, "calibrate_steps": 2}),
        runtime=vitcod_cli.RuntimeSettings(threads=1),
        model_kwargs=KWARGS,
    )
    assert seen == list(zip([*sorted(share for share in via if share < 0.6), 0.6], steps, strict=True))


def test_compress_for_a_cpu(dense: torch.nn.Module) -> None:
    """16 patches are one group of queries that share their keys."""
    words: Any = {
        "sparsity": 0.6,
        "svd_type": "none",
        "calibration": vitcod_cli.CalibrationSettings(calibrate_steps=0),
        "runtime": vitcod_cli.RuntimeSettings(threads=1),
        "model_kwargs": KWARGS,
    }
    images = [torch.randn(4, 3, 32, 32)]
    keep = keep_mask(vitcod_cli.compress(dense, images, block_for="cpu", **words))
    assert keep is not None
    assert (keep[..., 1:, :] == keep[..., 1:2, :]).all()
    assert 1 - keep.float().mean() == pytest.approx(0.6, abs=0.02)
    with pytest.raises(vitcod_cli.VitcodError, match="128 queries in a tile, and an image has 16 patches"):
        vitcod_cli.compress(dense, images, block_for="gpu", **words)


def test_compress_a_checkpoint_on_a_folder(tmp_path: Path, tiny_config: ModelConfig, image_folder: Path) -> None:
    vitcod_cli.save(build_model(tiny_config), tmp_path / "dense.safetensors")
    model = vitcod_cli.compress(
        tmp_path / "dense.safetensors",
        image_folder,
        sparsity=None,
        num_images=8,
        lowrank_calibration=vitcod_cli.LowRankCalibrationSettings(calibrate_steps=0),
    )
    assert keep_mask(model) is None
    assert model_config(model).svd_type == "mix_head_fc_qk"


def test_what_cannot_be_compressed(dense: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(vitcod_cli.VitcodError, match="model_kwargs"):
        vitcod_cli.compress(dense, [torch.randn(2, 3, 32, 32)])
    with pytest.raises(vitcod_cli.VitcodError, match="Linear can't be treated"):
        vitcod_cli.compress(torch.nn.Linear(2, 2), [])
    with pytest.raises(vitcod_cli.VitcodError, match="no batch"):
        vitcod_cli.compress(dense, [], model_kwargs=KWARGS)
    with pytest.raises(vitcod_cli.VitcodError, match=r"\[2, 3, 16, 16\]"):
        vitcod_cli.compress(dense, [torch.randn(2, 3, 16, 16)], model_kwargs=KWARGS)
    with pytest.raises(vitcod_cli.VitcodError, match="no images"):
        vitcod_cli.compress(dense, tmp_path, model_kwargs=KWARGS)


def test_a_model_is_not_compressed_twice(checkpoint: Path) -> None:
    images = [torch.randn(4, 3, 32, 32)]
    for model in (checkpoint, vitcod_cli.load(checkpoint), vitcod_cli.load(checkpoint, inference=False)):
        with pytest.raises(vitcod_cli.VitcodError, match="low-rank already"):
            vitcod_cli.compress(model, images)
    calibration = vitcod_cli.CalibrationSettings(**QUICK)
    model = vitcod_cli.load(checkpoint, inference=False)
    sparse = vitcod_cli.compress(model, images, svd_type="none", sparsity=0.5, calibration=calibration)
    assert keep_mask(model) is None
    mask = keep_mask(sparse)
    assert mask is not None
    assert model_config(sparse).svd_type == "mix_head_fc_qk"
    with pytest.raises(vitcod_cli.VitcodError, match="has a mask already"):
        vitcod_cli.compress(sparse, images, svd_type="none")


def test_crops_are_read_only_for_the_calibration_that_looks_at_them(
    dense: torch.nn.Module, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitcod_cli.pipeline import in_memory

    asked: list[int] = []
    read = in_memory.read_crops

    def counted(source, preprocess, count, crops, **others):  # type: ignore[no-untyped-def]
        asked.append(crops)
        return read(source, preprocess, count, crops, **others)

    monkeypatch.setattr(in_memory, "read_crops", counted)
    off = vitcod_cli.CalibrationSettings(calibrate_steps=0)
    on = vitcod_cli.CalibrationSettings(**QUICK)
    for calibration, sparsity in ((on, None), (off, 0.5), (on, 0.5)):
        vitcod_cli.compress(
            dense,
            image_folder,
            svd_type="none",
            num_images=4,
            sparsity=sparsity,
            calibration=calibration,
            model_kwargs=KWARGS,
        )
    assert asked == [1, 1, 2]


def test_the_steps_are_functions(checkpoint: Path, tmp_path: Path, image_folder: Path) -> None:
    data = vitcod_cli.DataSettings(data_path=str(image_folder), workers=0)
    result = vitcod_cli.evaluate(vitcod_cli.EvalOptions(checkpoint=str(checkpoint), data=data))
    assert result.images == 13
    attention = vitcod_cli.AttentionMapOptions(
        checkpoint=str(checkpoint), data=data, output=str(tmp_path / "attn.safetensors")
    )
    assert vitcod_cli.dump_attention(attention).shape == [2, 3, 17, 17]
    path, mask = vitcod_cli.make_mask(
        vitcod_cli.MaskOptions.from_flat(
            {"attn_map": attention.output, "sparsity": 0.6, "output_dir": str(tmp_path / "masks")}
        )
    )
    assert mask.keep.shape == (2, 3, 17, 17)
    fit = vitcod_cli.finetune_sparse(
        vitcod_cli.SparseOptions(
            init_from=str(checkpoint),
            mask=str(path),
            data=data,
            calibration=vitcod_cli.CalibrationSettings(calibrate_steps=1, calibrate_images=6, calibrate_crops=1),
            recipe=vitcod_cli.SparseRecipe(epochs=0, batch_size=8),
            output=vitcod_cli.OutputSettings(output_dir=str(tmp_path / "run")),
        )
    )
    assert fit.best.images == 13
    assert keep_mask(vitcod_cli.load(fit.checkpoint)) is not None


def test_a_mask_from_python_to_cycles(tmp_path: Path) -> None:
    keep = np.random.default_rng(0).random((2, 3, 17, 17)) < 0.3
    np.save(tmp_path / "mask.npy", ~keep)
    options = vitcod_cli.PolarizeOptions(mask=str(tmp_path / "mask.npy"), output_dir=str(tmp_path))
    (path,), mask = vitcod_cli.polarize(options)
    found = vitcod_cli.simulate(vitcod_cli.SimulateOptions(mask=str(path))).found
    assert mask.order is not None
    assert found.macs.tolist() == [2 * 64 * int(block.sum()) for block in keep]
    for other in ({"model": "published"}, {"sweep": ["lines=32"]}):
        with pytest.raises(vitcod_cli.VitcodError, match="is the estimate of one mask"):
            vitcod_cli.simulate(vitcod_cli.SimulateOptions.from_flat({"mask": str(path), **other}))
