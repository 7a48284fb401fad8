"""What an attention entry is worth: against exact Fisher information, and against pruning it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.attention import importance
from vitcod_cli.attention.importance import (
    add_damage,
    block_weights,
    collect_importance,
    feature_direction,
    fisher_direction,
)
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.model.build import build_model
from vitcod_cli.model.kernels.base import Heads, Kernel, masked_logits, merge
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.layers import attention_shape, attentions, clear_keep_mask, keep_mask, set_keep_mask, using
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import Runtime, RuntimeSettings

CPU = Runtime(RuntimeSettings(), torch.device("cpu"), torch.float32)
PREPROCESS = Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(tiny_config: ModelConfig) -> VisionTransformer:
    torch.manual_seed(0)
    model = build_model(tiny_config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pictures(count: int, same: bool = False) -> CalibrationImages:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (1 if same else count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return CalibrationImages(pixels.expand(count, -1, -1, -1), PREPROCESS, torch.device("cpu"), count)


def pruning_damage(
    model: VisionTransformer,
    images: CalibrationImages,
    runtime: Runtime,
    batch_size: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Mean over the images."""
    total = torch.zeros(attention_shape(model), dtype=torch.float64)
    add_damage(model, images, runtime, total, seed=seed, batch_size=batch_size)
    return (total / len(images)).numpy()


def exact_importance(model: VisionTransformer, image: Tensor) -> Tensor:
    """sum over classes c of p_c (d (log p_c) / d logits)^2 / (1 - attention)^2 for one image: [L, H, N, N]."""
    seen: list[Tensor] = []

    class Observing(Kernel):
        def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
            seen.append(masked_logits(heads.q, heads.k, keep))
            return merge(seen[-1].softmax(dim=-1) @ heads.v)

    with using(model, lambda index: Observing()):
        log_p = model(image.clone().requires_grad_()).log_softmax(-1)[0]
    total = torch.zeros(attention_shape(model))
    for score in log_p:
        gradients = torch.autograd.grad(score, seen, retain_graph=True)
        total += score.exp().detach() * torch.stack(gradients)[:, 0].square()
    attention = torch.stack([logits.detach()[0].softmax(-1) for logits in seen])
    return total / (1 - attention).square()


def test_the_directions_have_the_covariance_of_the_fisher_information() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    drawn = fisher_direction(logits.expand(40_000, -1), torch.Generator().manual_seed(0))
    p = logits.softmax(-1)[0]
    assert drawn.mean(dim=0).abs().max() < 0.01
    covariance = drawn.T @ drawn / len(drawn)
    torch.testing.assert_close(covariance, torch.diag(p) - p[:, None] * p, rtol=0, atol=0.01)


def test_it_is_the_fisher_information_of_every_entry(model: VisionTransformer) -> None:
    images = pictures(600, same=True)
    exact = exact_importance(model, images.tensor(slice(0, 1))).numpy()
    found = pruning_damage(model, images, CPU)
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() < 0.1 * exact.max()
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99


def test_it_foretells_the_damage_of_pruning_an_entry(model: VisionTransformer) -> None:
    """KL(p || p') = importance / 2 for an entry pruned alone, while the damage is small."""
    image = pictures(1).tensor(slice(0, 1))
    importance = exact_importance(model, image)
    with torch.no_grad():
        log_p = model(image).log_softmax(-1)[0].double()
    foretold = importance / 2
    places = torch.where(foretold < 1e-3, foretold, 0).flatten().topk(12).indices
    damage = []
    for place in places.tolist():
        keep = torch.ones(attention_shape(model), dtype=torch.bool)
        keep.view(-1)[place] = False
        set_keep_mask(model, keep)
        with torch.no_grad():
            after = model(image).log_softmax(-1)[0].double()
        damage.append(float((log_p.exp() * (log_p - after)).sum()))
    torch.testing.assert_close(torch.tensor(damage), foretold.view(-1)[places], rtol=0.15, atol=1e-6)


def test_the_model_is_left_as_it_was(model: VisionTransformer) -> None:
    model.train()
    model.head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collect_importance(model, pictures(3), CPU, SilentReporter())
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(type(layer.kernel) is FusedKernel for layer in attentions(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruned_entries_are_worth_nothing_and_bfloat16_agrees(model: VisionTransformer) -> None:
    keep = torch.rand(attention_shape(model), generator=torch.Generator().manual_seed(0)) < 0.5
    keep |= torch.eye(keep.shape[-1], dtype=torch.bool)
    set_keep_mask(model, keep)
    found = pruning_damage(model, pictures(8), CPU)
    assert (found[~keep.numpy()] == 0).all()
    first = keep[0].numpy()  # of the last block only the class token is read
    assert (found[0][first] > 0).mean() > 0.9
    half = Runtime(RuntimeSettings(), torch.device("cpu"), torch.bfloat16)
    rounded = pruning_damage(model, pictures(8), half)
    assert np.corrcoef(found.ravel(), rounded.ravel())[0, 1] > 0.9


def test_broken_weights_are_told(model: VisionTransformer) -> None:
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.fill_(float("nan"))
    with pytest.raises(VitcodError, match="importance of attention entries is not finite"):
        collect_importance(model, pictures(2), CPU, SilentReporter())


def test_with_one_round_the_order_is_the_damage(model: VisionTransformer) -> None:
    damage = pruning_damage(model, pictures(8), CPU)
    order = collect_importance(model, pictures(8), CPU, SilentReporter(), rounds=1)
    assert sorted(order.ravel()) == pytest.approx(np.arange(order.size) / order.size)
    assert (np.diff(damage.ravel()[order.argsort(axis=None)]) >= 0).all()


def test_late_blocks_count_more_by_their_depth(model: VisionTransformer) -> None:
    """From 1 in the first block to the weight in the last; the order is that of the damage times this."""
    damage = pruning_damage(model, pictures(8), CPU)
    weights = np.geomspace(1, 16, len(model.blocks))
    assert block_weights(model, 16) == pytest.approx(weights)
    order = collect_importance(model, pictures(8), CPU, SilentReporter(), rounds=1, late_weight=16)
    weighted = (damage * weights[:, None, None, None]).ravel()[order.argsort(axis=None)]
    assert (np.diff(weighted) >= -1e-6 * weighted[1:]).all()
    before = collect_importance(model, pictures(8), CPU, SilentReporter(), rounds=1)
    assert order[-1].mean() > before[-1].mean()


def test_late_blocks_count_more_under_a_mask_but_what_it_prunes_stays_last(model: VisionTransformer) -> None:
    keep = torch.from_numpy(allocated_mask(pruning_damage(model, pictures(4), CPU), 0.4, 1))
    set_keep_mask(model, keep)
    order = collect_importance(model, pictures(4), CPU, SilentReporter(), late_weight=1000)
    assert order[~keep.numpy()].max() < order[keep.numpy()].min()
    assert sorted(order.ravel()) == pytest.approx(np.arange(order.size) / order.size)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_no_block_counts_more_where_the_head_reads_patches(tiny_config: ModelConfig, pool: str) -> None:
    kwargs = {**tiny_config.model_kwargs, "global_pool": pool}
    pooled = build_model(dataclasses.replace(tiny_config, model_kwargs=kwargs))
    assert (block_weights(pooled, 4) == [1.0] * len(pooled.blocks)) == (pool == "avg")


def test_no_block_counts_more_where_there_is_no_head(tiny_config: ModelConfig) -> None:
    features = build_model(dataclasses.replace(tiny_config, num_classes=0))
    assert block_weights(features, 4) == [1.0] * len(features.blocks)


def test_later_rounds_order_what_the_earlier_left(model: VisionTransformer) -> None:
    """Half of the entries go by the first measurement; the second, without them, orders the others."""
    once = collect_importance(model, pictures(8), CPU, SilentReporter(), rounds=1)
    twice = collect_importance(model, pictures(8), CPU, SilentReporter(), rounds=2)
    half = allocated_mask(pruning_damage(model, pictures(8), CPU), 0.5, model.num_prefix_tokens)
    np.testing.assert_array_equal(twice[~half].argsort(kind="stable"), once[~half].argsort(kind="stable"))
    assert twice[half].min() > twice[~half].max()
    set_keep_mask(model, torch.from_numpy(half))
    again = pruning_damage(model, pictures(8), CPU, seed=1)
    assert (np.diff(again[half][twice[half].argsort()]) >= 0).all()
    assert (once[half].argsort() != twice[half].argsort()).any()


def test_a_mask_of_the_model_stays_and_what_it_prunes_is_worth_least(model: VisionTransformer) -> None:
    keep = torch.rand(attention_shape(model), generator=torch.Generator().manual_seed(0)) < 0.6
    keep |= torch.eye(keep.shape[-1], dtype=torch.bool)
    set_keep_mask(model, keep)
    order = collect_importance(model, pictures(4), CPU, SilentReporter())
    assert order[~keep.numpy()].max() < order[keep.numpy()].min()
    found = keep_mask(model)
    assert found is not None
    assert torch.equal(found, keep)


def test_rounds_that_a_mask_has_behind_it_are_not_run(
    model: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their order is replaced by that of the next, of the same entries: without them it is the same."""
    keep = torch.from_numpy(allocated_mask(collect_importance(model, pictures(4), CPU, SilentReporter()), 0.75, 1))
    set_keep_mask(model, keep)
    measured = []
    measure = importance.add_damage

    def counted(*args: Any, seed: int, **kwargs: Any) -> None:
        measured.append(seed)
        measure(*args, seed=seed, **kwargs)

    monkeypatch.setattr(importance, "add_damage", counted)
    order = collect_importance(model, pictures(4), CPU, SilentReporter())
    assert measured[0] == 2  # it leaves a quarter, as the second round does
    clear_keep_mask(model)
    set_keep_mask(model, keep)
    monkeypatch.setattr(importance, "_has_more", lambda keep, sparsity: True)
    np.testing.assert_array_equal(collect_importance(model, pictures(4), CPU, SilentReporter()), order)
    assert measured.count(0) == measured.count(1) == 1


def test_the_size_of_batches_makes_no_difference(model: VisionTransformer) -> None:
    """Each image has its own direction, whatever batch it is in."""
    together = pruning_damage(model, pictures(8), CPU, batch_size=8)
    for size in (1, 3):
        np.testing.assert_allclose(pruning_damage(model, pictures(8), CPU, size), together, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("entries", "most"), [(1, 1), (3 * 17**2, 3), (10**9, 32)])
def test_images_with_many_tokens_come_in_small_batches(
    model: VisionTransformer, monkeypatch: pytest.MonkeyPatch, entries: int, most: int
) -> None:
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(importance, "ENTRIES", entries)
    pruning_damage(model, pictures(40), CPU)
    assert sum(seen) == 40
    assert max(seen) == most


def test_no_probabilities_are_kept_for_the_backward_pass(model: VisionTransformer) -> None:
    """Those of a dozen layers took gigabytes at 512 pixels."""
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    tokens = attention_shape(model)[-1]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pruning_damage(model, pictures(2), CPU)
    assert kept
    assert not [shape for shape in kept if shape[-2:] == (tokens, tokens)]


def test_directions_of_features_are_all_alike() -> None:
    """Their covariance is the identity over the squared length of the feature."""
    features = torch.tensor([3.0, 0.0, -4.0]).expand(20_000, 3)
    directions = feature_direction(features, torch.Generator().manual_seed(0))
    torch.testing.assert_close(directions.T @ directions / 20_000, torch.eye(3) / 25, rtol=0, atol=2e-3)
    torch.testing.assert_close(directions.mean(dim=0), torch.zeros(3), rtol=0, atol=5e-3)
