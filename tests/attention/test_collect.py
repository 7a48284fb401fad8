"""Mean attention maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.attention import collect
from vitcod_cli.attention.collect import collect_attention
from vitcod_cli.data.images import ImageData
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.layers import attentions, set_keep_mask
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import Runtime, RuntimeSettings

CPU = Runtime(RuntimeSettings(), torch.device("cpu"), torch.float32)
BFLOAT16 = Runtime(RuntimeSettings(), torch.device("cpu"), torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches(*sizes: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(sum(sizes), 3, 32, 32, generator=generator)
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(sizes)]


@contextmanager
def collected_by_timm(model: nn.Module) -> Iterator[list[Tensor]]:
    """What timm's own attention layers hand to their dropout: the probabilities."""
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    yield seen


@pytest.mark.parametrize("pooled", [False, True])
def test_the_map_is_timm_s_softmax_averaged(tiny_config: ModelConfig, pooled: bool) -> None:
    kwargs = dict(tiny_config.model_kwargs)
    if pooled:
        kwargs.update(class_token=False, global_pool="avg")
    torch.manual_seed(0)
    model = build_model(tiny_config.changed(model_kwargs=kwargs))
    plain = timm.create_model(tiny_config.model, num_classes=5, img_size=32, **kwargs)
    plain.load_state_dict(model.state_dict())
    data = batches(5, 2)
    with torch.no_grad(), collected_by_timm(plain.eval()) as seen:
        plain(torch.cat([images for images, _ in data]))
    mean, num_images = collect_attention(model, data, CPU, SilentReporter())
    assert num_images == 7
    assert mean.dtype == np.float32
    expected = torch.stack(seen).double().mean(dim=1).numpy()
    assert mean.shape == (2, 3, 16 + (not pooled), 16 + (not pooled))
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, rtol=1e-6)


def test_the_batch_size_does_not_matter(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    one, _ = collect_attention(model, batches(40), CPU, SilentReporter())
    many, _ = collect_attention(model, batches(1, 3, 36), CPU, SilentReporter())
    np.testing.assert_allclose(one, many, rtol=1e-5)


def test_the_model_is_as_it_was(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config, drop_path=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, _ = collect_attention(model, batches(4), CPU, SilentReporter())
    second, _ = collect_attention(model, batches(4), CPU, SilentReporter())
    np.testing.assert_array_equal(first, second)  # no dropped paths
    assert model.training
    assert all(type(layer.kernel) is FusedKernel for layer in attentions(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruned_entries_of_a_sparse_model_are_zero(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config.changed(svd_type="mix_head_fc_qk"))
    keep = torch.rand(2, 3, 17, 17, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[..., 0] = True
    set_keep_mask(model, keep)
    mean, _ = collect_attention(model, batches(3), CPU, SilentReporter())
    assert (mean[~keep.numpy()] == 0).all()
    assert (mean[keep.numpy()] > 0).all()
    np.testing.assert_allclose(mean.sum(axis=-1), 1, rtol=1e-6)


def test_bfloat16_keeps_probabilities_accurate(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    exact, _ = collect_attention(model, batches(4), CPU, SilentReporter())
    rounded, _ = collect_attention(model, batches(4), BFLOAT16, SilentReporter())
    np.testing.assert_allclose(rounded.sum(axis=-1), 1, rtol=1e-6)
    assert np.abs(rounded - exact).max() < 0.02


@pytest.mark.parametrize("count", [1, 4, 5, 6, 100])
def test_no_more_images_than_asked_for(tiny_config: ModelConfig, count: int) -> None:
    model = build_model(tiny_config)
    mean, num_images = collect_attention(model, batches(4, 2, 1), CPU, SilentReporter(), max_images=count)
    images = torch.cat([images for images, _ in batches(4, 2, 1)])[:count]
    expected, _ = collect_attention(model, [(images, torch.zeros(len(images)))], CPU, SilentReporter())
    assert num_images == min(count, 7)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


@pytest.mark.parametrize(("entries", "most"), [(1, 1), (3 * 17**2, 3), (70 * 17**2, 64)])
def test_images_with_many_tokens_are_shown_a_few_at_a_time(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, entries: int, most: int
) -> None:
    model, seen = build_model(tiny_config), []
    expected, _ = collect_attention(model, batches(100), CPU, SilentReporter())
    monkeypatch.setattr(collect, "ENTRIES", entries)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    found, num_images = collect_attention(model, batches(100), CPU, SilentReporter(), max_images=99)
    assert (num_images, sum(seen), max(seen)) == (99, 99, most)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_no_image_is_an_error(tiny_config: ModelConfig) -> None:
    with pytest.raises(VitcodError, match="no image"):
        collect_attention(build_model(tiny_config), [], CPU, SilentReporter())


def test_broken_weights_are_named_by_block(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[0, 0] = float("nan")
    with pytest.raises(VitcodError, match="block 1 is not finite"):
        collect_attention(model, batches(2), CPU, SilentReporter())
    assert all(type(layer.kernel) is FusedKernel for layer in attentions(model))


class Numbered(ImageData):
    """A data set whose pictures are their indices."""

    def __init__(self, size: int) -> None:
        super().__init__(num_classes=size)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def load(self, index: int) -> tuple[int, int]:  # type: ignore[override]
        return index, index


def test_some_images_are_taken_from_all_over_the_data_set() -> None:
    part = Numbered(10).evenly_spaced(4)
    assert [part.load(index)[1] for index in range(len(part))] == [0, 2, 5, 7]
    assert part.describe(2) == "image 5"
    whole = Numbered(3)
    assert whole.evenly_spaced(3) is whole
    assert whole.evenly_spaced(9) is whole
