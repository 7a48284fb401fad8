"""Other precisions and fast paths give what float32 gives, to their own accuracy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import figures, weights
from tiny import NO_CHANCE, Colours, tiny_config, train
from torch import Tensor

from vitcod_cli import machine
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.evaluation.accuracy import evaluate
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import recording_reconstruction, set_keep_mask
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import Runtime, RuntimeSettings, start
from vitcod_cli.training.network import TrainingModel

CALM: dict[str, Any] = {"augmentation": NO_CHANCE, "drop_path": 0.0, "epochs": 2}


def losses(
    precision: Any, *, masked: bool, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits, reconstruction loss and gradients of one low-rank model on one batch."""
    torch.manual_seed(0)
    kwargs = {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3}
    model = build_model(tiny_config(svd_type="mix_head_fc_qk", model_kwargs=kwargs)).to(dtype)
    if masked:
        keep = torch.rand(4, 3, 17, 17) < 0.3
        set_keep_mask(model, keep | torch.eye(17, dtype=torch.bool))
    images = torch.randn(8, 3, 16, 16).to(dtype)
    with (
        start(RuntimeSettings(device="cpu", precision=precision)) as runtime,
        recording_reconstruction(model, True),
    ):
        with runtime.autocast():
            logits, recon = TrainingModel(model)(images)
        (logits.float().square().mean() + 1e-2 * recon).backward()
    return logits.detach(), recon.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 2e-3)])
def test_low_rank_and_masked_layers_keep_their_accuracy(masked: bool, precision: str, tolerance: float) -> None:
    """Against float64: errors of the format's own size, though the mask and the norms are touchy."""
    exact = losses("float32", masked=masked, dtype=torch.float64)
    found = losses(precision, masked=masked)
    assert found[1].dtype == torch.float32
    assert found[1].item() == pytest.approx(exact[1].item(), rel=tolerance)
    assert (found[0] - exact[0]).norm() < 2 * tolerance * exact[0].norm()
    for one, other in zip(found[2], exact[2], strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).norm() < 10 * tolerance * other.norm() + 1e-6


@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [({"precision": "bfloat16"}, 2e-2), ({"precision": "float16"}, 5e-3), ({"channels_last": True}, 1e-4)],
)
def test_the_loss_curve_stays(tmp_path: Path, runtime: dict[str, Any], tolerance: float) -> None:
    train(tmp_path / "plain", **CALM)
    train(tmp_path / "other", runtime=runtime, **CALM)
    for plain, other in zip(figures(tmp_path / "plain"), figures(tmp_path / "other"), strict=True):
        assert other["train_loss"] == pytest.approx(plain["train_loss"], rel=tolerance)
        assert other["train_recon_loss"] == pytest.approx(plain["train_recon_loss"], rel=tolerance)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "other", "last").values())


def test_by_itself_training_is_in_half_precision_and_its_score_in_single(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that is fast at bfloat16: the very weights of bfloat16, scored as eval scores them."""
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset(["avx512_bf16"]))
    result, model = train(tmp_path / "auto", runtime={"precision": "auto"}, **CALM)
    half, _ = train(tmp_path / "half", runtime={"precision": "bfloat16"}, **CALM)
    mine, expected = (weights(tmp_path / folder, "last") for folder in ("auto", "half"))
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert result.last.loss != half.last.loss
    cpu = torch.device("cpu")
    images = eval_loader(
        Colours(21, seed=2), Preprocess((3, 16, 16), crop_pct=1.0), batch_size=12, workers=0, device=cpu
    )
    single = Runtime(RuntimeSettings(), cpu, torch.float32)
    assert evaluate(model, images, single, SilentReporter()).loss == pytest.approx(result.last.loss, rel=1e-6)


def test_the_loss_scale_is_part_of_the_state(tmp_path: Path) -> None:
    train(tmp_path / "whole", runtime={"precision": "float16"}, **CALM)
    for steps in (3, None):
        train(tmp_path / "cut", runtime={"precision": "float16"}, max_steps=steps, resume=True, **CALM)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_compiled_training_is_the_same(precision: str, rel: float, tmp_path: Path) -> None:
    """In bfloat16, too, where the compiler traces our backward passes under autocast."""
    runtime = {"precision": precision, "deterministic": False}
    train(tmp_path / "plain", runtime=runtime, model_ema=False, **CALM)
    train(tmp_path / "compiled", runtime={**runtime, "compile": True}, model_ema=False, **CALM)
    for plain, compiled in zip(figures(tmp_path / "plain"), figures(tmp_path / "compiled"), strict=True):
        assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=rel)
        assert compiled["train_recon_loss"] == pytest.approx(plain["train_recon_loss"], rel=rel)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()
