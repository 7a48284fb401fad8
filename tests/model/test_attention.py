"""Our attention against timm's, against plain formulas, and its own paths against each other."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from small_models import (
    KINDS,
    beside,
    collect,
    config_of,
    first,
    random_keep,
    random_model,
    timm_twin,
    with_svd_types,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitcod_cli.attention.collect as collecting
import vitcod_cli.model.attention as attention
import vitcod_cli.model.kernels.explicit as explicit_attention
from vitcod_cli.artifacts.model_config import SVD_TYPES, SvdType
from vitcod_cli.attention.collect import CollectingKernel
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.auto_encoder import FoldedReconstruction, Reconstruction, compressed_heads, projections
from vitcod_cli.model.kernels.base import Heads, additive_mask
from vitcod_cli.model.kernels.explicit import ExplicitAttention
from vitcod_cli.model.layers import attention_shape, attentions, fold_auto_encoders, set_keep_mask

torch.set_num_threads(1)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def plain_projections(layer: SparseLowRankAttention, x: Tensor) -> list[Tensor]:
    """Q, K and V [B, heads, N, d] from the parameters that timm has."""
    parts = []
    for index, letter in enumerate("qkv"):
        if layer.qkv is None:
            projected = getattr(layer, f"{letter}_proj")(x)
        else:
            projected = layer.qkv(x).chunk(3, dim=-1)[index]
            if getattr(layer, f"{letter}_bias", None) is not None:
                projected = projected + getattr(layer, f"{letter}_bias")
        parts.append(projected.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2))
    return parts


def rotated(x: Tensor, rope: Tensor, *, half: bool) -> Tensor:
    """Pairs of channels as complex numbers, those of the patches turned by their angles."""
    sine, cosine = rope.to(x).chunk(2, dim=-1)
    pairs = (lambda t: t.unflatten(-1, (2, -1)).mT) if half else (lambda t: t.unflatten(-1, (-1, 2)))
    turns = torch.complex(pairs(cosine)[..., 0], pairs(sine)[..., 0])
    prefix = x.shape[-2] - rope.shape[-2]
    turned = torch.view_as_real(torch.view_as_complex(pairs(x[:, :, prefix:]).contiguous()) * turns)
    patches = turned.mT.flatten(-2) if half else turned.flatten(-2)
    return torch.cat([x[:, :, :prefix], patches], dim=2)


def plain_attention(
    layer: SparseLowRankAttention,
    x: Tensor,
    rope: Tensor | None = None,
    shared_rel_pos_bias: Tensor | None = None,
    shared_rel_pos: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The method by its definition: output, probabilities [B, H, N, N], reconstruction loss."""
    q, k, v = plain_projections(layer, x)
    q, k = layer.q_norm(q), layer.k_norm(k)
    loss = x.new_zeros(())
    hats = []
    for letter, original in (("q", q), ("k", k)):
        hat = original
        if letter in projections(layer.svd_type):
            encoder, decoder = getattr(layer, f"encoder_{letter}"), getattr(layer, f"decoder_{letter}")
            hat = decoder(encoder(original.movedim(1, -1))).movedim(-1, 1)
            loss = loss + (original - hat).pow(2).sum().sqrt()
        hats.append(hat)
    if rope is not None:
        hats = [rotated(hat, rope, half=bool(layer.rotate_half)) for hat in hats]
    if hats[1].shape[1] < layer.num_heads:
        order = torch.arange(layer.num_heads) // (layer.num_heads // hats[1].shape[1])
        hats[1], v = hats[1][:, order], v[:, order]
    logits = hats[0] @ hats[1].transpose(-1, -2) / original.shape[-1] ** 0.5
    for bias in (shared_rel_pos_bias, shared_rel_pos):
        if bias is not None:
            logits = logits + bias
    if getattr(layer, "relative_position_bias_table", None) is not None:
        logits = logits + layer.relative_position_bias_table[layer.relative_position_index].permute(2, 0, 1)
    if getattr(layer, "rel_pos", None) is not None:
        logits = logits + layer.rel_pos.get_bias()
    if layer.keep is not None:
        logits = torch.where(layer.keep, logits, -torch.inf)
    probabilities = logits.softmax(-1)
    return layer.proj(layer.norm((probabilities @ v).transpose(1, 2).flatten(2))), probabilities, loss


def tokens_for(layer: SparseLowRankAttention, count: int = 17) -> Tensor:
    return torch.randn(2, count, layer.projection("q")[0].shape[1], generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_without_mask_and_auto_encoder_it_is_timms(kind: str, images: Tensor) -> None:
    config = config_of(kind)
    model = random_model(config)
    expected = timm_twin(model, config)(images)
    torch.testing.assert_close(model(images), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "svd_type"), with_svd_types(*SVD_TYPES))
def test_every_path_is_the_definition(
    kind: str, svd_type: SvdType, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded and fused, unfolded and fused, unfolded and explicit, the loss from folded weights: one function."""
    model = random_model(config_of(kind, svd_type=svd_type)).double()
    if masked:
        set_keep_mask(model, random_keep(model))
    layer = first(model)
    x = tokens_for(layer, attention_shape(model)[-1]).double()
    others = {name: None if value is None else value.double() for name, value in beside(model).items()}
    output, probabilities, loss = plain_attention(layer, x, **others)
    compute = partial(layer, x, **others)
    torch.testing.assert_close(compute(), output, rtol=1e-9, atol=1e-12)
    assert layer.reconstruction_loss is None
    layer.record_reconstruction = True
    for width in (0, 1000):
        monkeypatch.setitem(attention.FOLDED_WIDTH, torch.float64, width)
        torch.testing.assert_close(compute(), output, rtol=1e-9, atol=1e-12)
        if svd_type == "none":
            assert layer.reconstruction_loss is None
        else:
            torch.testing.assert_close(layer.reconstruction_loss, loss, rtol=1e-12, atol=0)
    layer.kernel = CollectingKernel(torch.zeros(probabilities.shape[1:], dtype=torch.float64))
    torch.testing.assert_close(compute(), output, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(layer.kernel.total, probabilities.sum(0), rtol=1e-9, atol=1e-12)


def test_the_gradients_of_a_reconstruction() -> None:
    """Against finite differences, with both outputs used, for q as a view into qkv."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 5, 3, 4, 2, generator=generator, dtype=torch.float64)
    m, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 4), (4,)))

    def reconstruct(qkv: Tensor, m: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        q = qkv.permute(2, 0, 3, 1, 4)[0]
        x_hat, norm = Reconstruction.apply(q, m, b)
        torch.testing.assert_close(x_hat, torch.einsum("gh,bhnd->bgnd", m, q) + b[:, None, None])
        torch.testing.assert_close(norm, (q - x_hat).pow(2).sum().sqrt())
        return x_hat, norm

    assert torch.autograd.gradcheck(reconstruct, [x.requires_grad_() for x in (qkv, m, b)])


def test_the_gradients_of_a_folded_reconstruction() -> None:
    """Against finite differences and the norm by its definition, for tokens far from zero."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 6), (2, 4, 6), (2, 4))
    tokens, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    tokens += torch.tensor([0, 0, 50, 0, -3, 0])

    def norms(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found: Tensor = FoldedReconstruction.apply(tokens, weight, bias)
        differences = torch.einsum("prc,btc->pbtr", weight, tokens) + bias[:, None, None]
        torch.testing.assert_close(found, differences.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
        return found

    assert torch.autograd.gradcheck(norms, [x.requires_grad_() for x in (tokens, weight, bias)])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)]
)
def test_a_folded_reconstruction_of_tokens_with_outliers(dtype: torch.dtype, tolerance: float) -> None:
    """A mean that half precision rounds by as much as the tokens vary, and sums that float16 can't hold."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 197, 24, generator=generator)
    tokens[..., 3] += 1001
    tokens[..., 5] *= 20
    tokens = tokens.to(dtype)
    weight = torch.randn(2, 24, 24, generator=generator)
    weight[..., 5] /= 20
    bias = torch.randn(2, 24, generator=generator) - weight @ tokens.double().mean(dim=(0, 1)).float()

    def gradients(*given: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().clone().requires_grad_() for x in given]
        norms = FoldedReconstruction.apply(*leaves)
        norms.sum().backward()
        return norms.detach(), *(x.grad for x in leaves if x.grad is not None)

    expected = gradients(tokens.double(), weight.double(), bias.double())
    for one, exact in zip(gradients(tokens, weight, bias), expected, strict=True):
        assert (one.double() - exact).norm() < tolerance * exact.norm()


def test_a_perfect_reconstruction_has_a_gradient_of_zero() -> None:
    q = torch.randn(1, 3, 4, 2, requires_grad=True)
    _, norm = Reconstruction.apply(q, torch.eye(3), torch.zeros(3))
    norm.backward()
    assert norm.item() == 0
    assert q.grad is not None
    assert (q.grad == 0).all()


def test_a_folded_reconstruction_without_error_has_a_gradient_of_zero() -> None:
    """And leaves that of the projection beside it alone."""
    tokens = torch.randn(1, 3, 4, requires_grad=True)
    weight = torch.stack([torch.zeros(2, 4), torch.randn(2, 4)]).requires_grad_()
    norms = FoldedReconstruction.apply(tokens, weight, torch.zeros(2, 2))
    norms.sum().backward()
    assert norms[0].item() == 0
    assert tokens.grad is not None
    assert weight.grad is not None
    assert tokens.grad.isfinite().all()
    assert (weight.grad[0] == 0).all()
    assert (weight.grad[1] != 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradients_of_explicit_attention(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences, in slices of the batch, for q, k and v as views into qkv."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 5, 3, 2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    keep = (torch.rand(2, 5, 5, generator=generator) < 0.5) | torch.eye(5, dtype=torch.bool)
    mask = additive_mask(keep, torch.float64) if masked else None
    monkeypatch.setattr(explicit_attention, "SLICE_BYTES", 2 * 2 * 5 * 5 * 8)  # two images, then one

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        output: Tensor = ExplicitAttention.apply(q, k, v, mask)
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-12)
        return output

    assert torch.autograd.gradcheck(attend, [qkv])


def test_training_in_half_precision_on_a_cpu_remembers_one_attention_map_a_block(images: Tensor) -> None:
    """The backward pass needs the probabilities, in half precision, and neither logits nor a float32 copy.

    The last block has none to remember: of its rows the head reads one.
    """
    model = random_model(config_of("class token", svd_type="mix_head_fc_qk")).train()
    set_keep_mask(model, random_keep(model))
    kept: list[Tensor] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda x: [kept.append(x), x][1], lambda x: x),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(images).square().sum().backward()
    maps = [x for x in kept if x.shape[-2:] == (17, 17)]
    blocks = len(attentions(model)) - 1
    assert [x.dtype for x in maps] == [torch.bfloat16] * blocks
    assert sum(x.numel() for x in maps) == blocks * len(images) * 3 * 17 * 17


PRECISIONS = ((torch.float32, 1e-5, 1e-6), (torch.bfloat16, 0.05, 0.02))


@pytest.mark.parametrize(("masked", "batch", "precision"), list(product((False, True), (1, 5), PRECISIONS)))
def test_the_path_that_trains_is_the_fused_one(
    masked: bool, batch: int, precision: tuple[torch.dtype, float, float]
) -> None:
    """Output and gradients, at an odd number of tokens and a batch of one, too."""
    model = random_model(config_of("class token"))
    if masked:
        set_keep_mask(model, random_keep(model))
    layer = first(model)
    dtype, rtol, atol = precision
    inputs = [torch.randn(batch, 3, 17, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        merged = layer.kernel(Heads(q, q, k, v, None), layer.keep)
        return merged.unflatten(2, (3, 8)).transpose(1, 2)

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=layer.keep)

    results = []
    for attend in (ours, fused):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        output = attend(*leaves)
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=rtol, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "svd_type"), with_svd_types(*SVD_TYPES))
def test_a_folded_layer_has_no_auto_encoder_and_the_same_function(
    kind: str, svd_type: SvdType, images: Tensor
) -> None:
    model = random_model(config_of(kind, svd_type=svd_type)).eval()
    foldable = all(layer.foldable for layer in attentions(model))
    expected = model(images)
    fold_auto_encoders(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    left = [name for name in model.state_dict() if "encoder" in name or "decoder" in name]
    assert bool(left) == (svd_type != "none" and not foldable)


@torch.no_grad()
@pytest.mark.parametrize("svd_type", SVD_TYPES)
def test_auto_encoders_treat_what_their_name_says(svd_type: SvdType) -> None:
    layer = first(random_model(config_of("class token", svd_type=svd_type)))
    dense = copy.deepcopy(layer)
    dense.svd_type = "none"
    for letter in projections(svd_type):
        delattr(dense, f"encoder_{letter}")
        delattr(dense, f"decoder_{letter}")
    x = tokens_for(layer)
    changed = [not torch.equal(a, b) for a, b in zip(layer.project(x)[1:4], dense.project(x)[1:4], strict=True)]
    assert changed == ["q" in svd_type[3:].rpartition("_")[2], svd_type.endswith("k"), False]


@torch.no_grad()
def test_a_bottleneck_that_holds_everything_changes_nothing(images: Tensor) -> None:
    """Heads 2 and 3 as mixtures of heads 0 and 1, for which 2 of 4 dimensions are enough."""
    config = config_of("even head count", svd_type="mix_head_fc_qk")
    model = random_model(config)
    mixture = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    for layer in attentions(model):
        for index, letter in enumerate("qk"):
            for parameter in (layer.qkv.weight, layer.qkv.bias):
                rows = parameter.chunk(3)[index].view(4, -1)
                rows[2:] = mixture @ rows[:2]
            encoder, decoder = layer.auto_encoder(letter) or pytest.fail("no auto-encoder")
            encoder.weight.copy_(torch.eye(2, 4))
            decoder.weight.copy_(torch.cat([torch.eye(2), mixture]))
            encoder.bias.copy_(torch.tensor([0.7, -0.4]))
            decoder.bias.copy_(-decoder.weight @ encoder.bias)
    dense = config.changed(svd_type="none")
    weights = {k: v for k, v in model.state_dict().items() if "coder_" not in k}
    twin = random_model(dense)
    twin.load_state_dict(weights)
    torch.testing.assert_close(model(images), twin(images), rtol=1e-5, atol=1e-5)
    for layer in attentions(model):
        layer.record_reconstruction = True
    torch.testing.assert_close(model(images), twin(images), rtol=1e-5, atol=1e-5)
    for layer in attentions(model):
        assert layer.reconstruction_loss is not None
        assert layer.reconstruction_loss < 1e-4


@pytest.mark.parametrize(("heads", "hidden"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (12, 6)])
def test_the_bottleneck_is_half_of_the_heads_rounded_up(heads: int, hidden: int) -> None:
    config = config_of("class token", svd_type="mix_head_fc_k")
    config = config.changed(model_kwargs={**config.model_kwargs, "embed_dim": 60, "num_heads": heads})
    layer = first(random_model(config))
    assert compressed_heads(heads) == hidden
    assert layer.encoder_k.weight.shape == (hidden, heads)
    assert layer.decoder_k.weight.shape == (heads, hidden)
    assert not hasattr(layer, "encoder_q")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["class token", "distilled", "pooled, no class token", "registers"])
def test_attention_map_rows_sum_to_one_and_pruned_keys_get_nothing(kind: str, images: Tensor) -> None:
    model = random_model(config_of(kind, svd_type="mix_head_fc_qk"))
    prefix = {"class token": 1, "distilled": 2, "pooled, no class token": 0, "registers": 5}[kind]
    keep = random_keep(model)
    assert keep.shape == (2, 3, 16 + prefix, 16 + prefix)
    set_keep_mask(model, keep)
    fused = model(images)
    logits, mean = collect(model, images)
    torch.testing.assert_close(logits, fused, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.sum(-1), torch.ones(mean.shape[:3], dtype=mean.dtype), rtol=0, atol=1e-6)
    assert not mean[~keep].any()
    assert mean[keep].all()


@torch.no_grad()
def test_attention_sums_over_batches_and_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """More images and queries than the explicit path takes at once, in one batch or in several."""
    monkeypatch.setattr(collecting, "COLLECTED_BYTES", 32 * 3 * 17 * 4 * 3)  # three rows of 32 images
    model = random_model(config_of("class token"))
    set_keep_mask(model, random_keep(model))
    images = torch.randn(37, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    fused = model(images)
    logits, whole = collect(model, images)
    torch.testing.assert_close(logits, fused, rtol=1e-5, atol=1e-5)
    parts = [collect(model, part)[1] * len(part) for part in images.split([1, 30, 6])]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0) / 37, rtol=1e-6, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("svd_type", ["mix_head_fc_qk", "none"])
def test_bfloat16_stays_close(svd_type: SvdType, masked: bool, images: Tensor) -> None:
    """Under autocast our model loses no more than timm's own does."""
    config = config_of("class token", svd_type=svd_type)
    model = random_model(config)
    if masked:
        set_keep_mask(model, random_keep(model))

    def error(network: VisionTransformer) -> float:
        exact = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(images)
        return float((rough.float() - exact).norm() / exact.norm())

    dense = random_model(config.changed(svd_type="none"))
    assert error(model) < max(2 * error(timm_twin(dense, config)), 0.02)


@torch.no_grad()
def test_reconstruction_loss_keeps_its_accuracy_under_autocast() -> None:
    layer = first(random_model(config_of("class token", svd_type="mix_head_fc_qk")))
    layer.record_reconstruction = True
    x = tokens_for(layer)
    layer(x)
    exact = layer.reconstruction_loss
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert exact is not None
    assert layer.reconstruction_loss is not None
    assert layer.reconstruction_loss.dtype == torch.float32
    torch.testing.assert_close(layer.reconstruction_loss, exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize("svd_type", SVD_TYPES)
def test_gradients_are_the_same_folded_or_not(
    images: Tensor, svd_type: SvdType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reconstruction loss from the folded weights or from Q and K, and without it, folded or not."""

    def gradients(weight: float, width: int, record: bool = True) -> dict[str, Tensor]:
        monkeypatch.setitem(attention.FOLDED_WIDTH, torch.float64, width)
        model = random_model(config_of("class token", svd_type=svd_type)).double()
        set_keep_mask(model, random_keep(model))
        for layer in attentions(model):
            layer.record_reconstruction = record
        loss = model(images.double()).square().sum()
        recorded = [layer.reconstruction_loss for layer in attentions(model)]
        assert all((found is None) == (not record or svd_type == "none") for found in recorded)
        (loss + weight * sum(found for found in recorded if found is not None)).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        return {name: parameter.grad for name, parameter in model.named_parameters()}  # type: ignore[misc]

    for one, other in (
        (gradients(1.0, 1000), gradients(1.0, 0)),
        (gradients(0.0, 0, record=False), gradients(0.0, 0)),
    ):
        for name, gradient in one.items():
            scale = max(float(other[name].abs().max()), 1.0)
            torch.testing.assert_close(gradient, other[name], rtol=1e-9, atol=1e-10 * scale)


def test_a_wide_layer_in_float32_takes_its_loss_from_q_and_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the width at which the products of the folded way cost more than the passes that they save."""
    layer = first(random_model(config_of("class token", svd_type="mix_head_fc_qk")))
    layer.record_reconstruction = True
    taken: list[str] = []
    monkeypatch.setattr(layer, "_reconstruct", lambda x, letter: taken.append(letter) or x)
    width = layer.qkv.in_features
    for limit, expected in ((width, []), (width - 1, ["q", "k"])):
        monkeypatch.setitem(attention.FOLDED_WIDTH, torch.float32, limit)
        layer(tokens_for(layer))
        assert taken == expected


def test_the_mask_is_in_the_state_dict_and_moves_with_the_model() -> None:
    model = random_model(config_of("class token"))
    assert not any("keep" in name for name in model.state_dict())
    keep = random_keep(model)
    set_keep_mask(model, keep)
    assert torch.equal(model.state_dict()["blocks.1.attn.keep"], keep[1])
    assert copy.deepcopy(model).half().state_dict()["blocks.1.attn.keep"].dtype == torch.bool
    assert attentions(model.to("meta"))[0].keep.device.type == "meta"


def test_a_second_mask_is_refused() -> None:
    layer = first(random_model(config_of("class token")))
    x = tokens_for(layer)
    with pytest.raises(ValueError, match="own fixed mask"):
        layer(x, is_causal=True)
    with pytest.raises(ValueError, match="own fixed mask"):
        layer(x, attn_mask=torch.ones(17, 17, dtype=torch.bool))


def test_dropout_works_in_training_only(images: Tensor) -> None:
    config = config_of("class token")
    model = random_model(config.changed(model_kwargs={**config.model_kwargs, "attn_drop_rate": 0.5}))
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))
    assert isinstance(first(model).attn_drop, nn.Dropout)
