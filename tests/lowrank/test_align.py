"""Head alignment: the dense function stays, the kept energy rises, known rotations are found."""

from __future__ import annotations

import itertools

import pytest
import torch

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.lowrank.align import align_heads, mix_heads, principal_heads, rotate_heads
from vitcod_cli.lowrank.initialise import centre_keys
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attentions


def rotations(num_heads: int, head_dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(num_heads, head_dim, head_dim, dtype=torch.double, generator=generator))[0]


def test_rotating_heads_and_centring_keys_leaves_the_dense_function_unchanged(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config).eval()
    for layer in attentions(model):  # timm starts biases at zero: nothing would be centred
        torch.nn.init.normal_(layer.qkv.bias)
        torch.nn.init.normal_(layer.qkv.weight, std=0.3)
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        before = model(images)
    for layer in attentions(model):
        centre_keys(layer)
        rotate_heads(layer, rotations(layer.num_heads, layer.head_dim))
        assert layer.qkv.bias[layer.attn_dim : 2 * layer.attn_dim].abs().max() < 1e-6
    with torch.inference_mode():
        assert (model(images) - before).abs().max() < 1e-5 * before.abs().max()


def test_a_norm_on_q_and_k_forbids_rotation(tiny_config: ModelConfig) -> None:
    kwargs = {**tiny_config.model_kwargs, "qk_norm": True}
    layer = attentions(build_model(tiny_config.changed(model_kwargs=kwargs)))[0]
    with pytest.raises(ValueError, match="gauge"):
        rotate_heads(layer, rotations(3, 8))


@pytest.mark.parametrize(("num_heads", "rank"), [(3, 2), (4, 2), (1, 1)])
def test_hidden_likeness_of_the_heads_is_found(num_heads: int, rank: int) -> None:
    """Heads that are mixtures of few latent heads, each turned its own way: alignment undoes the turning."""
    torch.manual_seed(0)
    mixing = torch.rand(num_heads, rank, dtype=torch.double) + 0.1
    sides = [mix_heads(mixing, torch.randn(rank, 6, 40, dtype=torch.double)) for _ in range(2)]
    turned = [rotations(num_heads, 6, seed=1) @ side for side in sides]
    alignment = align_heads(turned, [rank, rank], iterations=500, tolerance=0)
    assert alignment.kept_after > max(0.97, alignment.kept_before - 1e-9)
    identity = alignment.rotations @ alignment.rotations.transpose(1, 2)
    assert torch.allclose(identity, torch.eye(6, dtype=torch.double).expand_as(identity), atol=1e-9)


def test_kept_energy_never_falls() -> None:
    torch.manual_seed(0)
    sides = [torch.randn(5, 4, 30, dtype=torch.double) for _ in range(2)]
    kept = [align_heads(sides, [3, 3], iterations=count, tolerance=-1).kept_after for count in range(1, 12)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(kept))
    assert kept[-1] > kept[0] + 0.01


def test_zero_heads_are_left_alone() -> None:
    alignment = align_heads([torch.zeros(3, 4, 5, dtype=torch.double)], [2])
    assert torch.equal(alignment.rotations, torch.eye(4, dtype=torch.double).repeat(3, 1, 1))


def test_principal_heads_are_the_best_of_all_bases() -> None:
    torch.manual_seed(0)
    heads = torch.randn(4, 3, 20, dtype=torch.double) * torch.tensor([3.0, 1.0, 2.0, 0.1])[:, None, None]
    best = mix_heads(principal_heads(heads, 2).T, heads).square().sum()
    for seed in range(20):
        other = rotations(1, 4, seed)[0][:, :2]
        assert mix_heads(other.T, heads).square().sum() <= best + 1e-9
