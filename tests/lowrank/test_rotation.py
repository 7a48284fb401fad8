"""Heads before a rotary embedding: the turns that they may have, and their logits over all positions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from model.small_models import NO_AUTO_ENCODER, beside, config_of, random_model
from torch import Tensor

from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.align import align_heads, mix_heads, rotate_heads
from vitcod_cli.lowrank.initialise import add_auto_encoders, initialise
from vitcod_cli.lowrank.logit_fit import LatentHeads, fit_latent_heads, logit_overlap
from vitcod_cli.lowrank.moments import collect_moments, query_weights
from vitcod_cli.lowrank.rotation import Rotation
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.kernels.base import masked_logits
from vitcod_cli.model.layers import attentions
from vitcod_cli.model.passes import rotary_embedding, tokens_of

ROTARY = ["EVA-02", "EVA-02, three projections", "DINOv3, key bias", "Perception Encoder"]
"""Both ways to pair channels, with and without a bias on K."""


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def rotation_of(model: Transformer) -> Rotation:
    rotation = Rotation.of(model, attentions(model)[0])
    assert rotation is not None
    return rotation


def random_heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def turns(model: Transformer) -> Tensor:
    """The rotary embedding as matrices, [N, d, d]: what timm makes of unit vectors at each token."""
    layer, rope = attentions(model)[0], rotary_embedding(model)
    assert rope is not None
    tokens = len(rope) + model.num_prefix_tokens
    units = torch.eye(layer.head_dim, dtype=torch.double)[:, None, None].expand(-1, 1, tokens, -1)
    return layer._rotated(units, rope.double())[:, 0].permute(1, 2, 0)


@pytest.mark.parametrize("kind", ROTARY)
def test_the_overlap_is_the_mean_over_all_pairs_of_tokens(kind: str) -> None:
    model = random_model(config_of(kind))
    turn = turns(model)
    weights = query_weights(len(turn), model.num_prefix_tokens, torch.device("cpu")).double()
    q, k, other_q, other_k = (random_heads(3, 8, n, seed=i) for i, n in enumerate((5, 4, 5, 4)))
    expected = sum(
        weight * logit_overlap(of_query @ q, of_key @ k, of_query @ other_q, of_key @ other_k)
        for weight, of_query in zip(weights, turn, strict=True)
        for of_key in turn
    ) / len(turn)
    found = rotation_of(model).overlap(q, k, other_q, other_k)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # timm's sines are float32


@pytest.mark.parametrize("kind", ROTARY)
def test_the_turns_are_orthogonal_commute_with_the_embedding_and_are_the_best_of_these(kind: str) -> None:
    model = random_model(config_of(kind))
    cross = random_heads(3, 8, 8, seed=4)
    best = rotation_of(model).best_turns(cross)
    torch.testing.assert_close(best @ best.mT, torch.eye(8).double().expand(3, 8, 8))
    for turn in turns(model):
        torch.testing.assert_close(best @ turn, turn @ best, rtol=0, atol=1e-6)
    for seed in range(20):
        other = rotation_of(model).best_turns(random_heads(3, 8, 8, seed=100 + seed))
        assert ((best * cross).sum(dim=(1, 2)) >= (other * cross).sum(dim=(1, 2)) - 1e-12).all()
    assert torch.equal(rotation_of(model).best_turns(torch.zeros(1, 8, 8).double())[0], torch.eye(8).double())


@torch.no_grad()
@pytest.mark.parametrize("kind", ROTARY)
def test_turning_the_heads_changes_nothing(kind: str) -> None:
    model = random_model(config_of(kind))
    expected, rotation = model(images()), rotation_of(model)
    for index, layer in enumerate(attentions(model)):
        rotate_heads(layer, rotation.best_turns(random_heads(3, 8, 8, seed=index)))
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)


def test_the_turns_line_heads_up_that_a_phase_apart_are_alike() -> None:
    rotation = rotation_of(random_model(config_of("EVA-02")))
    one = random_heads(1, 8, 30)
    turned = rotation.best_turns(random_heads(3, 8, 8, seed=1)) @ one
    found = align_heads([turned], [1], rotation=rotation)
    assert found.kept_before < 0.9
    assert found.kept_after > 1 - 1e-6


def test_low_rank_heads_are_recovered_whatever_their_phases() -> None:
    rotation = rotation_of(random_model(config_of("EVA-02")))
    q = mix_heads(random_heads(3, 2, seed=1), random_heads(2, 8, 12, seed=3))
    k = mix_heads(random_heads(3, 2, seed=2), random_heads(2, 8, 11, seed=4))
    gauge = rotation.best_turns(random_heads(3, 8, 8, seed=5))
    q, k = gauge @ q, gauge @ k
    start = (LatentHeads.principal(q, 2), LatentHeads.principal(k, 2))
    fit = fit_latent_heads(*start, q, k, steps=500, rotation=rotation)
    assert fit.error_before > 1e-2
    assert fit.error_after < fit.error_before / 100


def compressed(dense: Transformer, **settings: Any) -> Transformer:
    student, chosen = copy.deepcopy(dense), LowRankSettings(**settings)
    moments = collect_moments(student, images(24).split(7), num_prefix_tokens=student.num_prefix_tokens)
    add_auto_encoders(student, chosen)
    initialise(student, moments, chosen)
    return student.eval()


@torch.no_grad()
def attention_error(dense: Transformer, **settings: Any) -> float:
    """Relative error of the first layer's logits, centred over keys, on images that were seen."""
    tokens, logits = tokens_of(dense, images(24)), []
    for model in (dense, compressed(dense, **settings)):
        heads = attentions(model)[0].project(dense.blocks[0].norm1(tokens), **beside(model))
        logits.append(masked_logits(heads.q, heads.k, None))
    want, got = (x - x.mean(dim=-1, keepdim=True) for x in logits)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("kind", ROTARY)
def test_the_fit_beats_rotation_and_pca(kind: str) -> None:
    dense = random_model(config_of(kind))
    fitted = attention_error(dense)
    assert fitted < attention_error(dense, align_steps=0)
    assert fitted < attention_error(dense, init="pca")


@pytest.mark.parametrize("kind", ROTARY)
def test_two_heads_that_are_alike_cost_nothing(kind: str) -> None:
    """Heads 0 and 2 agree up to phases: rank 2 of 3 is exact."""
    model = random_model(config_of(kind))
    gauge = rotation_of(model).best_turns(random_heads(1, 8, 8, seed=5))[0].float()
    with torch.no_grad():
        for layer in attentions(model):
            for parameter in (*layer.projection("q"), *layer.projection("k")):
                if parameter is not None:
                    parameter[16:24] = gauge @ parameter[:8]
    with torch.no_grad():
        want, got = model(images()), compressed(model)(images())
    assert (got - want).abs().max() < 0.02 * want.abs().max()


@pytest.mark.parametrize("kind", sorted(NO_AUTO_ENCODER))
def test_where_heads_cannot_be_mixed_the_reason_is_told(kind: str) -> None:
    with pytest.raises(VitcodError, match=r"can have no head auto-encoder: .*Masks it can have"):
        add_auto_encoders(random_model(config_of(kind)), LowRankSettings())
    with pytest.raises(VitcodError, match="can have no head auto-encoder"):
        random_model(config_of(kind, svd_type="mix_head_fc_q"))
