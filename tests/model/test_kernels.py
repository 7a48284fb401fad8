"""Kernels: all of them compute the same function, and whoever borrows one gives it back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from small_models import config_of, random_keep, random_model
from torch import Tensor

from vitcod_cli.attention.collect import CollectingKernel
from vitcod_cli.attention.damage import DamageKernel
from vitcod_cli.lowrank.moments import MomentKernel
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.kernels.base import Heads, Kernel, additive_mask
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.kernels.planned import AttentionPlan, PlannedKernel, find_clusters
from vitcod_cli.model.layers import attentions, reconstruction_loss, recording_reconstruction, set_keep_mask, using


def planned(layer: SparseLowRankAttention, keep: Tensor) -> Kernel:
    plan = AttentionPlan(keep, [find_clusters(head, (4, 4)) for head in keep.numpy()])
    plan.least_batch = 1
    return PlannedKernel(plan).eval()


KERNELS: dict[str, Callable[[SparseLowRankAttention, Tensor], Kernel]] = {
    "fused": lambda layer, keep: FusedKernel(),
    "fused, mask prepared": lambda layer, keep: FusedKernel(additive_mask(keep, torch.float32)[None]),
    "planned": planned,
    "collecting": lambda layer, keep: CollectingKernel(torch.zeros(keep.shape, dtype=torch.float64), images=2),
    "damage": lambda layer, keep: DamageKernel(torch.zeros(keep.shape, dtype=torch.float64)),
    "moments": lambda layer, keep: MomentKernel(layer, 1),
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_the_definition(name: str) -> None:
    model = random_model(config_of("class token"))
    keep = random_keep(model)
    set_keep_mask(model, keep)
    layer = attentions(model)[0]
    tokens = torch.randn(5, 17, layer.qkv.in_features, generator=torch.Generator().manual_seed(0))
    heads = layer.project(tokens.requires_grad_())
    logits = heads.q.double() @ heads.k.double().mT / heads.q.shape[-1] ** 0.5
    logits = logits.masked_fill(~keep[0], float("-inf"))
    expected = (logits.softmax(dim=-1) @ heads.v.double()).transpose(1, 2).flatten(2)
    result = KERNELS[name](layer, keep[0])(heads, keep[0])
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_plan_is_what_a_planned_kernel_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would see fused attention."""
    model = random_model(config_of("class token"))
    keep = random_keep(model)[0]
    layer, followed = attentions(model)[0], []
    kernel = planned(layer, keep)
    monkeypatch.setattr(AttentionPlan, "__call__", lambda self, packed: followed.append(len(packed)) or packed)
    heads = layer.project(torch.randn(3, 17, layer.qkv.in_features))
    kernel(heads, keep)
    assert followed == [3]
    kernel(heads._replace(packed=None), keep)
    assert followed == [3, 3], "q and k of their own are packed"
    kernel.train()(heads, keep)
    assert followed == [3, 3], "training"


def test_borrowed_kernels_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Kernel):
        def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
            raise ZeroDivisionError

    model = random_model(config_of("class token"))
    before = [layer.kernel for layer in attentions(model)]
    with pytest.raises(ZeroDivisionError), using(model, lambda index: Broken()):
        model(torch.randn(1, 3, 32, 32))
    assert all(layer.kernel is kernel for layer, kernel in zip(attentions(model), before, strict=True))

    def scarce(index: int) -> Kernel:
        if index:
            raise MemoryError
        return Broken()

    with pytest.raises(MemoryError), using(model, scarce):
        pass
    assert all(layer.kernel is kernel for layer, kernel in zip(attentions(model), before, strict=True))


def test_no_layer_holds_on_to_a_graph() -> None:
    model = random_model(config_of("class token", svd_type="mix_head_fc_qk")).train()
    with recording_reconstruction(model):
        model(torch.randn(2, 3, 32, 32))
        loss = reconstruction_loss(model)
        assert loss is not None
        assert loss.requires_grad
    assert reconstruction_loss(model) is None
    copy.deepcopy(model)  # a graph can't be copied
    with recording_reconstruction(model, enabled=False):
        model(torch.randn(2, 3, 32, 32))
        assert reconstruction_loss(model) is None
