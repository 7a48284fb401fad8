"""Parity with the published code, on the golden cases that it computed (tests/golden)."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli.attention.collect import CollectingKernel
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import (
    attention_shape,
    keep_mask,
    reconstruction_loss,
    recording_reconstruction,
    using,
)
from vitcod_cli.model.load import load_model
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import SilentReporter

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
CASES = ["heads3_qk", "heads4_q", "heads4_qk_masked", "heads3_dense_masked"]


@dataclass(frozen=True)
class Golden:
    """One case: our model with the published weights and mask, and what the published code got."""

    model: VisionTransformer
    expected: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def images(self) -> Tensor:
        return self.expected["images"]


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Loaded as a user would load it, through --checkpoint, --mask, --model and --model-kwargs."""
    path = GOLDEN / request.param
    with safe_open(path.with_suffix(".safetensors"), "pt") as file:
        expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    kwargs = json.loads(metadata["model_kwargs"])
    settings = ModelSettings(
        model="deit_tiny_patch16_224", model_kwargs=[f"{key}={value}" for key, value in kwargs.items()]
    )
    masked = ast.literal_eval(metadata["masked"])
    model = load_model(
        settings,
        f"{path}_reference.pth",
        flag="--checkpoint",
        reporter=SilentReporter(),
        mask=f"{path}_mask_reference.npy" if masked else None,
    )
    assert model_config(model).svd_type == metadata["svd_type"].replace("None", "none")
    assert (keep_mask(model) is not None) == masked
    return Golden(model.eval(), expected, metadata)


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def losses(golden: Golden) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, reconstruction loss, and the total that the published code trains on."""
    model = golden.model
    with recording_reconstruction(model):
        logits = model(golden.images)
        recorded = reconstruction_loss(model)
    recon = torch.zeros(()) if recorded is None else recorded
    return logits, recon, F.cross_entropy(logits, golden.expected["labels"]) + 1e-4 * recon


@torch.no_grad()
def test_logits_with_folded_weights_and_fused_attention(golden: Golden) -> None:
    assert relative(golden.model(golden.images), golden.expected["logits"]) < 1e-5


@torch.no_grad()
def test_logits_and_losses(golden: Golden) -> None:
    logits, recon, total = losses(golden)
    assert relative(logits, golden.expected["logits"]) < 1e-5
    if golden.metadata["svd_type"] == "None":
        assert recon == golden.expected["recon_loss"] == 0
    else:
        assert relative(recon, golden.expected["recon_loss"]) < 1e-5
    assert relative(total, golden.expected["loss"]) < 1e-5


@torch.no_grad()
def test_mean_attention(golden: Golden) -> None:
    sums = torch.zeros(attention_shape(golden.model), dtype=torch.float64)
    with using(golden.model, lambda index: CollectingKernel(sums[index])):
        for image in golden.images:  # one at a time: the sums go over batches
            golden.model(image[None])
    mean = sums / len(golden.images)
    assert relative(mean, golden.expected["mean_attention"]) < 1e-5


def test_gradient_norms(golden: Golden) -> None:
    """Of every parameter; float32 on both sides is enough (the largest difference is 1e-5)."""
    *_, total = losses(golden)
    total.backward()
    expected = {k.removeprefix("grad_norm."): v for k, v in golden.expected.items() if k.startswith("grad_norm.")}
    norms = {name: parameter.grad.norm() for name, parameter in golden.model.named_parameters()}
    assert norms.keys() == expected.keys()
    # No floor for small figures: none is zero. (The softmax doesn't see a constant added to all keys, so K's own
    # bias has no gradient, but it is part of qkv.bias, and decoder_k.bias has one from the reconstruction loss.)
    for name, norm in norms.items():
        assert relative(norm, expected[name]) < 1e-4, name
