"""Attention that leaves out what the mask prunes, against fused attention with the mask."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import ObservingKernel, collect, config_of, random_keep, random_model, with_svd_types
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import vitcod_cli.model.kernels.planned as module
from vitcod_cli.artifacts.model_config import SvdType
from vitcod_cli.bench.workload import for_inference
from vitcod_cli.model.kernels.base import additive_mask
from vitcod_cli.model.kernels.planned import AttentionPlan, PlannedKernel, find_clusters, plan_attention
from vitcod_cli.model.layers import attentions, clear_keep_mask, prepare_inference, set_keep_mask, using
from vitcod_cli.model.tiles import token_tiles

torch.set_num_threads(1)


def local_keep(heads: int, grid: tuple[int, int], prefix: int, reach: float = 1.5, seed: int = 0) -> Tensor:
    """A mask like those of trained models: neighbours, some global tokens, noise, the first token all."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    tokens = prefix + len(places)
    keep = torch.rand(heads, tokens, tokens, generator=generator) < 0.005
    keep[:, prefix:, prefix:] |= torch.cdist(places, places) <= reach
    keep |= torch.rand(heads, 1, tokens, generator=generator) < 0.02
    keep[:, :prefix] = True
    return keep | torch.eye(tokens, dtype=torch.bool)


def fused(qkv: Tensor, keep: Tensor) -> Tensor:
    """[B, N, 3*H*d] to [B, N, H*d] by torch's own attention."""
    q, k, v = qkv.unflatten(-1, (3, len(keep), -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2).flatten(2)


def plan_of(keep: Tensor, grid: tuple[int, int]) -> AttentionPlan:
    return AttentionPlan(keep, [find_clusters(head, grid) for head in keep.numpy()])


SHAPES = [(3, (14, 14), 1, 4), (1, (7, 7), 0, 1), (4, (9, 13), 2, 3), (2, (1, 5), 5, 7), (2, (16, 3), 1, 2)]


@pytest.mark.parametrize(("heads", "grid", "prefix", "batch"), SHAPES)
def test_a_plan_computes_masked_attention(
    heads: int, grid: tuple[int, int], prefix: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = local_keep(heads, grid, prefix)
    monkeypatch.setattr(module, "CALL", 0.0)  # small clusters, so that there are some
    monkeypatch.setattr(module, "ROW", 1.0)
    plan = plan_of(keep, grid)
    qkv = torch.randn(batch, keep.shape[-1], 3 * heads * 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plan(qkv), fused(qkv, keep), rtol=1e-4, atol=1e-5)
    kept = float(keep.float().mean())
    assert kept <= plan.products <= 1 + module.LANES / keep.shape[-1]


def test_a_random_mask_and_images_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = (torch.rand(2, 37, 37, generator=torch.Generator().manual_seed(0)) < 0.1) | torch.eye(37).bool()
    plan = plan_of(keep, (6, 6))
    qkv = torch.randn(11, 37, 3 * 2 * 8, generator=torch.Generator().manual_seed(1))
    whole = plan(qkv)
    torch.testing.assert_close(whole, fused(qkv, keep), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "SLICE_BYTES", 1)
    seen = []
    attend = plan._attend
    monkeypatch.setattr(plan, "_attend", lambda part: [seen.append(len(part)), attend(part)][1])
    torch.testing.assert_close(plan(qkv), whole, rtol=1e-5, atol=1e-6)
    assert seen == [4, 4, 3]


@pytest.mark.parametrize(("heads", "grid", "prefix", "batch"), SHAPES)
def test_clusters_have_every_query_once_and_all_its_keys(
    heads: int, grid: tuple[int, int], prefix: int, batch: int
) -> None:
    for head in local_keep(heads, grid, prefix).numpy():
        clusters = find_clusters(head, grid)
        queries = np.concatenate([cluster.queries for cluster in clusters])
        assert sorted(queries) == list(range(len(head)))
        for cluster in clusters:
            assert all(before < after for before, after in pairwise(cluster.keys))
            needed = np.flatnonzero(head[cluster.queries].any(axis=0))
            assert np.isin(needed, cluster.keys).all()
            assert len(cluster.keys) == min(-(-len(needed) // 16) * 16, len(head))


def test_two_kinds_of_queries_become_two_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The left half looks left, the right half right, so nothing is gained by more clusters or by fewer."""
    side = torch.arange(32 * 32) % 32 < 16
    keep = (side[:, None] == side).numpy()
    clusters = find_clusters(keep, (32, 32))
    assert sorted(len(cluster.queries) for cluster in clusters) == [512, 512]
    assert all((keep[cluster.queries][:, cluster.keys]).all() for cluster in clusters)
    plan = AttentionPlan(torch.from_numpy(keep)[None], [clusters])
    assert plan.products == 0.5
    cost = module.LOGIT * 512 * 512 + module.ROW * 4 * 512
    spare = module.MASKED * 1024**2 - 2 * cost
    assert plan.least_batch == math.ceil(2 * module.CALL / spare)


def test_queries_that_share_their_keys_stay_together() -> None:
    """A mask of ``gen-mask --block 64 --block-keys 1``, whose groups are no squares of this grid."""
    groups = token_tiles(577, (24, 24), 64)
    kept = np.random.default_rng(0).random((len(groups.sizes), 577)) < 0.1
    keep = kept[groups.of_tokens]
    plan = AttentionPlan(torch.from_numpy(keep)[None], [find_clusters(keep, (24, 24))])
    members = [set(groups.of_tokens[cluster.queries]) for cluster in plan.clusters[0]]
    assert sum(map(len, members)) == len(groups.sizes), "none is torn apart"
    assert len(members) > 4
    assert plan.products < 2 * keep.mean()


def test_a_plan_is_made_where_it_pays() -> None:
    large, small = local_keep(2, (24, 24), 1), local_keep(2, (14, 14), 1)
    plan = plan_attention(large, (24, 24))
    assert plan is not None
    assert plan.least_batch <= 8
    assert plan_attention(small, (14, 14)) is None
    assert plan_attention(torch.ones_like(large), (24, 24)) is None
    scattered = (torch.rand(large.shape, generator=torch.Generator().manual_seed(0)) < 0.1) | torch.eye(577).bool()
    assert plan_attention(scattered, (24, 24)) is None


def test_the_additive_mask() -> None:
    keep = torch.rand(2, 5, 37, generator=torch.Generator().manual_seed(0)) < 0.5
    for dtype in (torch.float32, torch.bfloat16):
        added = additive_mask(keep, dtype)
        assert added.dtype == dtype
        assert torch.equal(added == 0, keep)
        assert torch.equal(added == -torch.inf, ~keep)
        assert added.stride(-2) % 16 == 0


@pytest.fixture
def large() -> VisionTransformer:
    """24 x 24 patches, a mask that pays; in two blocks and a last one, of which the head reads a single row."""
    config = config_of("class token")
    kwargs = {**config.model_kwargs, "depth": 3}
    model = random_model(config.changed(img_size=(192, 192), model_kwargs=kwargs))
    set_keep_mask(model, torch.stack([local_keep(3, (24, 24), 1, seed=seed) for seed in range(3)]))
    return model


def plans_followed(model: VisionTransformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of each forward of a plan from now on."""
    seen: list[int] = []
    call = AttentionPlan.__call__
    monkeypatch.setattr(AttentionPlan, "__call__", lambda plan, qkv: [seen.append(len(qkv)), call(plan, qkv)][1])
    return seen


@torch.no_grad()
def test_a_prepared_model_follows_its_plans_and_computes_the_same(
    large: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(9, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    expected, names = large(images), list(large.state_dict())
    prepare_inference(large)
    seen = plans_followed(large, monkeypatch)
    torch.testing.assert_close(large(images), expected, rtol=1e-4, atol=1e-5)
    assert seen == [9, 9]
    assert list(large.state_dict()) == names
    kernels = [layer.kernel for layer in attentions(large)]
    least = max(kernel.plan.least_batch for kernel in kernels if isinstance(kernel, PlannedKernel))
    assert least > 1
    torch.testing.assert_close(large(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    assert len(seen) == 2  # a single image is left to fused attention


@torch.no_grad()
def test_a_plan_is_left_where_somebody_looks_inside(
    large: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(8, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    prepare_inference(large)
    seen = plans_followed(large, monkeypatch)
    _, attention = collect(large, images)
    assert not attention[~torch.stack([layer.keep for layer in attentions(large)])].any()
    observers = [ObservingKernel(), ObservingKernel(), ObservingKernel()]
    with using(large, lambda index: observers[index]):
        large(images)
    assert [logits.shape for kernel in observers for logits in kernel.seen] == [(8, 3, 577, 577)] * 3
    with torch.autocast("cpu", torch.bfloat16):
        large(images)
    large.train()
    large(images)
    assert not seen
    large.eval()
    large(images)
    assert seen == [8, 8]


@torch.no_grad()
def test_another_mask_after_preparing(large: VisionTransformer) -> None:
    images = torch.randn(8, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    other = random_keep(large)
    set_keep_mask(large, other)
    expected = large(images)
    clear_keep_mask(large)
    dense = large(images)
    set_keep_mask(large, torch.stack([local_keep(3, (24, 24), 1)] * 3))
    prepare_inference(large)
    set_keep_mask(large, other)
    torch.testing.assert_close(large(images), expected, rtol=1e-5, atol=1e-6)
    prepare_inference(large)
    clear_keep_mask(large)
    torch.testing.assert_close(large(images), dense, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "svd_type"), with_svd_types("none", "mix_head_fc_qk"))
def test_preparing_changes_nothing_but_the_time(kind: str, svd_type: SvdType) -> None:
    """With auto-encoders and a mask."""
    model = random_model(config_of(kind, svd_type=svd_type))
    set_keep_mask(model, random_keep(model))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = model(images)
    prepare_inference(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "svd_type"), with_svd_types("none", "mix_head_fc_qk"))
def test_preparing_for_autocast_rounds_what_autocast_would(kind: str, svd_type: SvdType) -> None:
    """To the bit; auto-encoders are folded before the rounding in both cases."""
    model = random_model(config_of(kind, svd_type=svd_type))
    set_keep_mask(model, random_keep(model))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ready = for_inference(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(images), model(images))
    assert ready.blocks is not model.blocks
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.bfloat16 in {parameter.dtype for parameter in ready.parameters()}


@torch.no_grad()
def test_in_bfloat16_there_is_a_plan_too(large: VisionTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float32 as fused attention is in bfloat16; float32 doesn't follow it."""
    images = torch.randn(9, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    expected = large(images)
    fused, ready = copy.deepcopy(large), copy.deepcopy(large)
    prepare_inference(fused, torch.bfloat16, "fused")
    prepare_inference(ready, torch.bfloat16)
    seen = plans_followed(ready, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [float((model(images).float() - expected).norm()) for model in (fused, ready)]
    assert seen == [9, 9]
    assert errors[1] < 1.5 * errors[0]
    assert ready.blocks[0].attn.kernel.plan.dtype == torch.bfloat16
