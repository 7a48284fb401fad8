"""Parameters and multiply-accumulates against figures worked out by hand, and against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.bench.counting import Counts, count
from vitcod_cli.bench.workload import timm_twin
from vitcod_cli.masks.statistics import attention_macs
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def vit_macs(tokens: int, patches: int, patch_values: int, width: int, depth: int, classes: int) -> int:
    """By the book: stem, then per block qkv, both products, projection and an MLP of four times the width."""
    block = tokens * (3 * width**2 + width**2 + 2 * 4 * width**2) + 2 * tokens**2 * width
    return patches * patch_values * width + depth * block + width * classes


def test_a_tiny_model_by_hand(tiny_config: ModelConfig) -> None:
    counts = count(build_model(tiny_config))
    # 16 patches of 8x8x3 values, 17 tokens of 24 channels, 2 blocks, 5 classes.
    block_parameters = (24 * 72 + 72) + (24 * 24 + 24) + (24 * 96 + 96) + (96 * 24 + 24) + 4 * 24
    assert counts == Counts(
        parameters=(192 * 24 + 24) + 24 + 17 * 24 + 2 * block_parameters + 2 * 24 + (24 * 5 + 5),
        auto_encoder_parameters=0,
        auto_encoder_macs=0,
        macs=vit_macs(17, 16, 192, 24, 2, 5),
        attention_macs=2 * (2 * 3 * 17 * 17 * 8),
        kept_attention_macs=2 * (2 * 3 * 17 * 17 * 8),
    )


def test_deit_tiny() -> None:
    config = ModelConfig(model="deit_tiny_patch16_224", num_classes=1000, img_size=(224, 224))
    counts = count(build_model(config))
    assert counts.parameters == 5_717_416
    assert counts.macs == vit_macs(197, 196, 768, 192, 12, 1000)
    assert counts.macs == pytest.approx(1.26e9, rel=0.01), "the published figure"
    assert counts.attention_share == pytest.approx(0.143, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "qk_norm": True}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "map"}),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
        ("vit_small_patch16_18x2_224", {}),
    ],
)
def test_as_torch_counts_timms_own_model(name: str, kwargs: dict[str, Any]) -> None:
    config = ModelConfig(model=name, num_classes=5, img_size=(32, 32), model_kwargs={**SMALL, **kwargs})
    model = build_model(config)
    twin = timm_twin(model).eval().requires_grad_(False)
    # By plain products: not every torch counts the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, 3, 32, 32))
    assert count(model).macs == counter.get_total_flops() // 2
    assert count(model) == count(twin)


def test_other_ends_by_hand() -> None:
    config = ModelConfig(model="vit_tiny_patch16_224", num_classes=5, img_size=(32, 48), model_kwargs=SMALL)

    def macs(**kwargs: Any) -> int:
        return count(build_model(config.changed(model_kwargs={**SMALL, **kwargs}))).macs

    assert macs() == vit_macs(25, 24, 192, 24, 2, 5)
    assert macs(reg_tokens=4) == vit_macs(29, 24, 192, 24, 2, 5)
    assert macs(class_token=False, global_pool="avg") == vit_macs(24, 24, 192, 24, 2, 5)
    # A latent query attends to all tokens: q, k, v, the products, projection, MLP.
    pool = 24 * 24 + 2 * 24 * 24 * 24 + 2 * 24 * 24 + 24 * 24 + 2 * 24 * 96
    assert macs(class_token=False, global_pool="map") == vit_macs(24, 24, 192, 24, 2, 5) + pool


def test_a_stem_of_convolutions() -> None:
    counts = count(build_model(ModelConfig(model="vit_tiny_r_s16_p8_224", num_classes=5, img_size=(64, 64))))
    stem = 64 * 32 * 32 * (3 * 7 * 7)
    assert counts.macs == stem + vit_macs(5, 4, 64 * 8 * 8, 192, 12, 5)


def test_auto_encoders_that_fold_cost_nothing(tiny_config: ModelConfig) -> None:
    dense, lowrank = (
        count(build_model(tiny_config.changed(svd_type=kind))) for kind in ("none", "mix_head_fc_qk")
    )
    # Two blocks, Q and K, 3 heads to 2 and back, with biases.
    assert lowrank.auto_encoder_parameters == 2 * 2 * ((3 * 2 + 2) + (2 * 3 + 3))
    assert lowrank.parameters == dense.parameters + lowrank.auto_encoder_parameters
    assert lowrank.auto_encoder_macs == 0
    assert lowrank.macs == dense.macs


def test_auto_encoders_behind_a_norm_are_counted(tiny_config: ModelConfig) -> None:
    normed = tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "qk_norm": True})
    dense, only_q = (count(build_model(normed.changed(svd_type=kind))) for kind in ("none", "mix_head_fc_q"))
    assert only_q.auto_encoder_macs == 2 * (3 * 3) * 8 * 17
    assert only_q.macs == dense.macs + only_q.auto_encoder_macs


def test_what_a_mask_leaves(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    dense = count(model)
    keep = torch.rand(attention_shape(model), generator=torch.Generator().manual_seed(0)) < 0.2
    keep |= torch.eye(17, dtype=torch.bool)
    set_keep_mask(model, keep)
    counts = count(model)
    assert counts.kept_attention_macs == 2 * 8 * int(keep.sum())
    assert counts.kept_attention_macs == attention_macs(tuple(keep.shape), 8, keep.numpy())
    assert counts.attention_macs == attention_macs(tuple(keep.shape), 8)
    assert counts.macs == dense.macs, "all arithmetic counts the dense products"
    assert counts.saved_attention_share == pytest.approx(1 - keep.float().mean().item())
    assert counts.saved_share == pytest.approx(counts.saved_attention_share * counts.attention_share)


def test_the_model_is_left_as_it_was(tiny_config: ModelConfig) -> None:
    model: VisionTransformer = build_model(tiny_config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
