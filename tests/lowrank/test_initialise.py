"""Auto-encoders set from moments: how near the compressed model is to the dense one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.initialise import add_auto_encoders, initialise
from vitcod_cli.lowrank.moments import collect_moments
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.build import build_model
from vitcod_cli.model.kernels.base import masked_logits
from vitcod_cli.model.layers import attentions


def lively_model(config: ModelConfig, **kwargs: Any) -> VisionTransformer:
    """A random model whose attention is not flat, so that errors in Q and K show."""
    torch.manual_seed(0)
    model = build_model(config.changed(model_kwargs={**config.model_kwargs, **kwargs})).eval()
    for layer in attentions(model):
        torch.nn.init.normal_(layer.qkv.weight, std=0.4)
        if layer.qkv.bias is not None:
            torch.nn.init.normal_(layer.qkv.bias, std=0.4)
    return model


def images(count: int = 24) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def compressed(model: VisionTransformer, **settings: Any) -> VisionTransformer:
    moments = collect_moments(model, images().split(7), num_prefix_tokens=model.num_prefix_tokens)
    chosen = LowRankSettings(**settings)
    add_auto_encoders(model, chosen)
    if chosen.init != "trunc-normal":
        initialise(model, moments, chosen)
    return model.eval()


def attention_error(config: ModelConfig, kwargs: dict[str, Any], **settings: Any) -> float:
    """Relative error of the first layer's logits, centred over keys (softmax sees no more)."""
    dense, student = lively_model(config, **kwargs), lively_model(config, **kwargs)
    student = compressed(student, **settings)
    with torch.no_grad():
        tokens = dense.blocks[0].norm1(dense._pos_embed(dense.patch_embed(images())))
        projected = [model.blocks[0].attn.project(tokens) for model in (dense, student)]
        logits = [masked_logits(heads.q, heads.k, None) for heads in projected]
        want, got = (x - x.mean(dim=-1, keepdim=True) for x in logits)
        return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("heads", "svd_type"),
    [
        (3, "mix_head_fc_qk"),
        (6, "mix_head_fc_qk"),
        (12, "mix_head_fc_qk"),
        (3, "mix_head_fc_q"),
        (4, "mix_head_fc_k"),
    ],
)
def test_the_fit_beats_rotation_beats_pca(tiny_config: ModelConfig, heads: int, svd_type: str) -> None:
    kwargs = {"num_heads": heads}
    pca = attention_error(tiny_config, kwargs, svd_type=svd_type, init="pca")
    rotated = attention_error(tiny_config, kwargs, svd_type=svd_type, align_steps=0)
    fitted = attention_error(tiny_config, kwargs, svd_type=svd_type)
    assert fitted < rotated < pca


def test_two_equal_heads_of_three_cost_nothing(tiny_config: ModelConfig) -> None:
    """Heads 0 and 2 agree up to a rotation: rank 2 is exact, and aligned finds it where PCA can't."""
    model = lively_model(tiny_config)
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    for layer in attentions(model):
        with torch.no_grad():
            for start in (0, layer.attn_dim):
                layer.qkv.weight[start + 16 : start + 24] = turn @ layer.qkv.weight[start : start + 8]
                layer.qkv.bias[start + 16 : start + 24] = turn @ layer.qkv.bias[start : start + 8]
    student = compressed(copy.deepcopy(model))
    with torch.inference_mode():
        want, got = model(images()), student(images())
    assert (got - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize(
    "kwargs",
    [{"qkv_bias": False}, {"qk_norm": True}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}],
    ids=["no bias", "qk norm", "pooled", "registers"],
)
def test_every_kind_of_model_is_compressed(tiny_config: ModelConfig, kwargs: dict[str, Any]) -> None:
    random = attention_error(tiny_config, kwargs, init="trunc-normal")
    aligned = attention_error(tiny_config, kwargs)
    assert aligned < 0.8 * random


def test_qk_norm_falls_back_to_pca(tiny_config: ModelConfig) -> None:
    model = lively_model(tiny_config, qk_norm=True)
    moments = collect_moments(model, [images()], num_prefix_tokens=1)
    add_auto_encoders(model, LowRankSettings())
    assert {report.method for report in initialise(model, moments, LowRankSettings())} == {"pca"}


def test_a_dead_head_gives_no_nan(tiny_config: ModelConfig) -> None:
    model = lively_model(tiny_config)
    for layer in attentions(model):
        with torch.no_grad():
            layer.qkv.weight[: 2 * layer.attn_dim] = 0
            layer.qkv.bias[: 2 * layer.attn_dim] = 0
    for init in ("aligned", "pca"):
        assert compressed(copy.deepcopy(model), init=init)(images(2)).isfinite().all()


def test_moments_do_not_depend_on_the_batches(tiny_config: ModelConfig) -> None:
    model = lively_model(tiny_config)
    whole = collect_moments(model, [images()], num_prefix_tokens=1)
    parts = collect_moments(model, images().split(5), num_prefix_tokens=1)
    for one, other in zip(whole, parts, strict=True):
        for a, b in zip(one.tensors(), other.tensors(), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7 * float(a.abs().max()))


def test_key_moments_are_blind_to_a_constant_in_all_keys(tiny_config: ModelConfig) -> None:
    """The covariance is taken inside each image: what all its tokens share is not in it."""
    layer = attentions(lively_model(tiny_config))[0]
    from vitcod_cli.lowrank.moments import MomentKernel

    tokens = torch.randn(4, 17, 24)
    sums = []
    for shift in (0.0, 3.0):
        kernel = MomentKernel(layer, 1)
        heads = layer.project(tokens)._replace(tokens=tokens + shift)  # the same attention: only the tokens move
        kernel(heads, None)
        sums.append(kernel.moments.key)
    assert torch.allclose(sums[0], sums[1], atol=1e-3)


# -- images and weights that tell nothing, or nonsense -----------------------------------------------


@pytest.mark.parametrize("init", ["aligned", "pca"])
@pytest.mark.parametrize("svd_type", ["mix_head_fc_qk", "mix_head_fc_q", "mix_head_fc_k"])
def test_one_image_without_contrast_is_enough(tiny_config: ModelConfig, init: str, svd_type: str) -> None:
    """The moments are singular then."""
    model = lively_model(tiny_config)
    with torch.no_grad():
        model.pos_embed.zero_()  # all tokens but the class token are the same
    moments = collect_moments(model, [torch.zeros(1, 3, 32, 32)], num_prefix_tokens=1)
    settings = LowRankSettings(init=init, svd_type=svd_type)  # type: ignore[arg-type]
    add_auto_encoders(model, settings)
    reports = initialise(model, moments, settings)
    assert all(math.isfinite(report.kept_energy) for report in reports)
    assert model(images(2)).isfinite().all()


@pytest.mark.parametrize("broken", ["images", "weights"])
def test_moments_that_are_not_finite_are_one_sentence(tiny_config: ModelConfig, broken: str) -> None:
    model, batch = lively_model(tiny_config), images(2)
    if broken == "images":
        batch[0, 0, 0, 0] = torch.inf
        block = 1
    else:
        torch.nn.init.constant_(model.blocks[0].mlp.fc2.weight, 3e38)
        block = 2
    with pytest.raises(VitcodError, match=f"The tokens that enter block {block} are not finite"):
        collect_moments(model, [batch], num_prefix_tokens=1)


def test_a_decomposition_that_fails_is_one_sentence(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively_model(tiny_config)
    moments = collect_moments(model, [images(2)], num_prefix_tokens=1)
    add_auto_encoders(model, LowRankSettings())

    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge.")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(VitcodError, match=r"block 1 can't be fitted \(linalg.eigh: .*converge\);"):
        initialise(model, moments, LowRankSettings())


def test_weights_that_become_infinite_are_one_sentence(tiny_config: ModelConfig) -> None:
    model = lively_model(tiny_config)
    moments = collect_moments(model, [images(2)], num_prefix_tokens=1)
    add_auto_encoders(model, LowRankSettings())
    moments[1].heads["q"] = moments[1].heads["q"] * 1e200
    with pytest.raises(VitcodError, match="auto-encoders of block 2 can't be fitted"):
        initialise(model, moments, LowRankSettings(init="pca"))
