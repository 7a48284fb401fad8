"""Masks are large at high resolution: what a model needs of them is there once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import config_of, random_keep, random_model

from vitcod_cli.model.kernels import choice
from vitcod_cli.model.layers import (
    attention_shape,
    attentions,
    has_mask,
    keep_mask,
    mask_sparsity,
    prepare_inference,
    set_keep_mask,
)
from vitcod_cli.steps.setup import dense_copy


def test_layers_hold_the_mask_itself() -> None:
    model = random_model(config_of("class token"))
    assert (has_mask(model), mask_sparsity(model)) == (False, 0.0)
    keep = random_keep(model)
    set_keep_mask(model, keep)
    assert has_mask(model)
    assert mask_sparsity(model) == pytest.approx(1 - float(keep.double().mean()))
    for layer, block in zip(attentions(model), keep, strict=True):
        assert layer.keep is not None
        assert layer.keep.data_ptr() == block.data_ptr()
    set_keep_mask(model, list(keep.clone()))
    found = keep_mask(model)
    assert found is not None
    assert torch.equal(found, keep)


def test_a_teacher_is_made_without_copying_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(config_of("class token"))
    set_keep_mask(model, random_keep(model))
    copied: list[tuple[int, ...]] = []
    deepcopy = torch.Tensor.__deepcopy__

    def noted(tensor: torch.Tensor, memo: Any) -> Any:
        copied.append(tuple(tensor.shape))
        return deepcopy(tensor, memo)

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", noted)
    copy.deepcopy(model)
    assert attention_shape(model)[1:] in copied
    copied.clear()
    teacher = dense_copy(model)
    assert attention_shape(model)[1:] not in copied
    assert not has_mask(teacher)
    assert has_mask(model)


@torch.no_grad()
def test_large_masks_are_not_made_to_floats_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model is the same function."""
    model = random_model(config_of("class token")).eval()
    set_keep_mask(model, random_keep(model))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = model(images)
    large = copy.deepcopy(model)
    prepare_inference(model)
    assert any("additive" in name for name, _ in model.named_buffers())
    monkeypatch.setattr(choice, "PREPARED", 0)
    prepare_inference(large)
    assert not any("additive" in name for name, _ in large.named_buffers())
    for prepared in (model, large):
        torch.testing.assert_close(prepared(images), expected, rtol=1e-5, atol=1e-5)
