"""FlexAttention over tiles against fused attention with the same mask; uncompiled but for a slow test."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_models import KINDS, config_of, random_keep, random_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import flex_attention

from vitcod_cli.model.kernels import measured as module
from vitcod_cli.model.kernels.base import Heads, Kernel, merge
from vitcod_cli.model.kernels.choice import inference_kernel
from vitcod_cli.model.kernels.flex import BLOCK, FlexKernel, tile_size
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.kernels.measured import MeasuredKernel, measure_kernels
from vitcod_cli.model.kernels.planned import PlannedKernel
from vitcod_cli.model.layers import attentions, prepare_inference, set_keep_mask
from vitcod_cli.model.read_rows import rows_read
from vitcod_cli.model.tiles import token_tiles

torch.set_num_threads(1)

SHAPES = [(3, (8, 8), 1), (2, (16, 16), 0), (1, (9, 13), 2), (2, (6, 5), 20), (2, (1, 5), 1)]
"""Heads, grid and prefix tokens: tokens that fill tiles and that don't, more prefix tokens than a tile has."""


def scattered(heads: int, grid: tuple[int, int], prefix: int, share: float = 0.02) -> Tensor:
    """Bool [H, N, N]: few entries, the diagonal, the prefix."""
    tokens = prefix + grid[0] * grid[1]
    keep = torch.rand(heads, tokens, tokens, generator=torch.Generator().manual_seed(0)) < share
    keep |= torch.eye(tokens, dtype=torch.bool)
    keep[:, :prefix] = keep[:, :, :prefix] = True
    return keep


def of_whole_tiles(heads: int, grid: tuple[int, int], prefix: int, block: int) -> Tensor:
    """Bool [H, N, N]: some tiles, those of the diagonal and of the prefix; other ones in each head."""
    tiles = token_tiles(prefix + grid[0] * grid[1], grid, block)
    number = len(tiles.sizes)
    kept = torch.rand(heads, number, number, generator=torch.Generator().manual_seed(1)) < 0.3
    kept |= torch.eye(number, dtype=torch.bool)
    kept[:, : tiles.num_prefix] = kept[:, :, : tiles.num_prefix] = True
    of_tokens = torch.from_numpy(tiles.of_tokens)
    return kept[:, of_tokens][:, :, of_tokens]


def heads_of(keep: Tensor, packed: bool = True, batch: int = 2, dtype: torch.dtype = torch.float32) -> Heads:
    """Random ones [B, H, N, 8]."""
    heads, tokens = keep.shape[:2]
    qkv = torch.randn(batch, tokens, 3 * heads * 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    q, k, v = qkv.view(batch, tokens, 3, heads, 8).permute(2, 0, 3, 1, 4)
    return Heads(qkv, q, k, v, qkv if packed else None)


def fused(heads: Heads, keep: Tensor) -> Tensor:
    return merge(F.scaled_dot_product_attention(heads.q, heads.k, heads.v, attn_mask=keep[None]))


def computed(kernel: FlexKernel, keep: Tensor) -> Tensor:
    """The entries [H, N, N] that the tiles of a kernel come to, the mask applied in those kept in part."""
    mask, size = kernel.mask, kernel.mask.BLOCK_SIZE[0]
    heads, places = len(keep), len(kernel.places)
    found = torch.zeros(heads, places, places, dtype=torch.bool)
    for counts, indices, whole in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        assert counts is not None
        assert indices is not None
        for head in range(heads):
            for row in range(places // size):
                queries = torch.arange(row * size, (row + 1) * size)[:, None]
                for column in indices[0, head, row, : counts[0, head, row]].tolist():
                    keys = torch.arange(column * size, (column + 1) * size)
                    every = torch.ones(size, size, dtype=torch.bool)
                    part = every if whole else mask.mask_mod(queries, torch.tensor(head), queries, keys)
                    found[head, queries, keys] = part
    # Wherever a token stands for the second time, no query looks.
    second = torch.ones(places, dtype=torch.bool)
    second[kernel.position] = False
    assert not found[:, :, second].any()
    return found[:, kernel.position][:, :, kernel.position]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("heads", "grid", "prefix"), SHAPES)
@pytest.mark.parametrize("make", [scattered, partial(of_whole_tiles, block=16)], ids=["any", "tiles"])
@torch.inference_mode()
def test_it_computes_masked_attention(
    make: Callable[..., Tensor], heads: int, grid: tuple[int, int], prefix: int, packed: bool
) -> None:
    keep = make(heads, grid, prefix)
    kernel = FlexKernel(keep, grid, block=16).eval()
    assert torch.equal(computed(kernel, keep), keep)
    given = heads_of(keep, packed)
    torch.testing.assert_close(kernel(given, keep), fused(given, keep), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_full_tiles_have_no_mask_to_apply() -> None:
    """16 x 16 patches fill tiles of 64; that of the one prefix token is filled up with a key that is masked."""
    keep = of_whole_tiles(2, (16, 16), 1, 64)
    block, masked, full = FlexKernel(keep, (16, 16)).work
    tiles = token_tiles(257, (16, 16), 64)
    of_patches = int(keep[:, tiles.order[1::64]][:, :, tiles.order[1::64]].sum())
    assert (block, masked, full) == (64, 2 * 5, of_patches + 2 * 4)
    assert FlexKernel(keep[:, 1:, 1:], (16, 16)).work == (64, 0, of_patches)


def test_tiles_are_as_large_as_the_mask_has_whole_ones() -> None:
    for block in (16, 32, 64, 128):
        assert tile_size(of_whole_tiles(2, (16, 16), 1, block), (16, 16)) == block
    assert tile_size(of_whole_tiles(2, (32, 32), 1, 256), (32, 32)) == BLOCK
    assert tile_size(scattered(2, (16, 16), 1), (16, 16)) == BLOCK
    assert tile_size(torch.ones(2, 257, 257, dtype=torch.bool), (16, 16)) == BLOCK


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs g++")
@torch.inference_mode()
def test_compiled_for_a_cpu() -> None:
    """Where the lists of tiles are read; one code for all layers of a kind, and one for all other batches."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor")
    attend = torch.compile(flex_attention, backend=counter)
    for batch in (2, 3, 4):
        for seed in range(3):
            keep = scattered(2, (8, 8), 1)
            if seed:
                keep = of_whole_tiles(2, (8, 8), 1, 16) | (torch.arange(2) == seed)[:, None, None]
            kernel = FlexKernel(keep, (8, 8), block=16).eval()
            kernel._attend = attend
            given = heads_of(keep, batch=batch)
            torch.testing.assert_close(kernel(given, keep), fused(given, keep), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 4


@torch.inference_mode()
def test_half_precision_and_a_norm_that_leaves_single() -> None:
    keep = of_whole_tiles(2, (8, 8), 1, 16)
    given = heads_of(keep, packed=False, dtype=torch.bfloat16)
    mixed = given._replace(q=given.q.float(), k=given.k.float())
    attended = FlexKernel(keep, (8, 8)).eval()(mixed, keep)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended, fused(given, keep), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("case", ["training", "gradients", "dropout", "few rows"])
def test_what_it_leaves_to_fused_attention(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = of_whole_tiles(2, (8, 8), 1, 16)
    kernel = FlexKernel(keep, (8, 8)).train(case == "training")
    monkeypatch.setattr(kernel, "_attend", None)
    given = heads_of(keep)
    if case == "gradients":
        given = given._replace(q=given.q.clone().requires_grad_())
    if case == "few rows":
        given = given._replace(q=given.q[:, :, :2], packed=None)
    attended = kernel(given, keep, 1e-9 if case == "dropout" else 0.0)
    expected = fused(given, keep[:, : given.q.shape[2]])
    torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-5)


def sparse_model(kind: str, **kwargs: object) -> VisionTransformer:
    config = config_of(kind)
    model = random_model(config.changed(img_size=(64, 64), model_kwargs={**config.model_kwargs, **kwargs}))
    set_keep_mask(model, random_keep(model, 0.1))
    return model


@pytest.mark.parametrize("kind", [*KINDS])
@torch.inference_mode()
def test_whole_models(kind: str) -> None:
    model = sparse_model(kind)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    expected = model(images)
    prepare_inference(model, attention="flex")
    kernels = [layer.kernel for layer in attentions(model)]
    assert isinstance(kernels[0], FlexKernel)
    assert isinstance(kernels[-1], FlexKernel) == (rows_read(model) is None)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
    again = copy.deepcopy(model)
    torch.testing.assert_close(again(images), expected, rtol=1e-3, atol=1e-4)


def test_the_choice_of_a_kernel() -> None:
    keep = of_whole_tiles(2, (24, 24), 1, 64)
    grid, single = (24, 24), torch.float32
    assert type(inference_kernel(keep, grid, single)) is PlannedKernel
    assert type(inference_kernel(keep, grid, torch.bfloat16)) is PlannedKernel
    assert type(inference_kernel(keep, grid, torch.float16)) is FusedKernel
    assert type(inference_kernel(keep, grid, single, asked="fused")) is FusedKernel
    assert type(inference_kernel(keep, grid, single, asked="flex")) is FlexKernel
    assert type(inference_kernel(keep, grid, single, asked="flex", all_rows=False)) is FusedKernel
    assert type(inference_kernel(keep, grid, single, asked="measured")) is PlannedKernel, "nothing to try on a CPU"


class SlowKernel(FusedKernel):
    """Takes so many times as long."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.calls = times, 0

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        self.calls += 1
        for _ in range(self.times):
            attended = super().forward(heads, keep, dropout)
        return attended


@torch.inference_mode()
def test_the_faster_kernel_is_found_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FASTEST", {})
    monkeypatch.setattr(module, "SECONDS", 0.002)
    keep = scattered(2, (8, 8), 1)
    given = heads_of(keep)
    for first, second, best in ((1, 40, 0), (40, 1, 1)):
        kernels: list[SlowKernel] = [SlowKernel(first), SlowKernel(second)]
        kernel = MeasuredKernel(kernels, work=best).eval()
        torch.testing.assert_close(kernel(given, keep), fused(given, keep))
        before = [one.calls for one in kernels]
        kernel(given, keep)
        assert [one.calls - earlier for one, earlier in zip(kernels, before, strict=True)] == [1 - best, best]
        twin: list[Kernel] = [SlowKernel(first), SlowKernel(second)]
        MeasuredKernel(twin, work=best).eval()(given, keep)
        assert [one.calls for one in twin] == [1 - best, best], "known from the first"  # type: ignore[attr-defined]
    assert len(module._FASTEST) == 2
    kernel(heads_of(keep, batch=3), keep)
    assert len(module._FASTEST) == 3


@torch.inference_mode()
def test_no_gain_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FASTEST", {})
    monkeypatch.setattr(module, "measure_kernels", lambda *_: [1.0, 0.98])
    keep = scattered(2, (8, 8), 1)
    kernels = [SlowKernel(1), SlowKernel(1)]
    MeasuredKernel(kernels, work=0).eval()(heads_of(keep), keep)
    assert [kernel.calls for kernel in kernels] == [1, 0]


def test_training_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_kernels", None)
    keep = scattered(2, (8, 8), 1)
    kernels = [SlowKernel(1), SlowKernel(1)]
    MeasuredKernel(kernels, work="training").train()(heads_of(keep), keep)
    assert [kernel.calls for kernel in kernels] == [1, 0]


@torch.inference_mode()
def test_seconds_are_those_of_a_call() -> None:
    keep = scattered(2, (8, 8), 1)
    fast, slow = measure_kernels([SlowKernel(1), SlowKernel(50)], heads_of(keep), keep)
    assert 0 < fast < slow
