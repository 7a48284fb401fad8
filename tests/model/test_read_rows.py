"""The last block computes the rows that the head reads: the same logits and gradients; whoever looks sees all."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import KINDS, collect, config_of, random_keep, random_model, timm_twin
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitcod_cli.export.program import InferenceProgram
from vitcod_cli.model.kernels.base import Heads, Kernel, merge
from vitcod_cli.model.layers import (
    attentions,
    prepare_inference,
    reconstruction_loss,
    recording_reconstruction,
    set_keep_mask,
    using,
)
from vitcod_cli.model.passes import block_passes, tokens_of
from vitcod_cli.model.read_rows import last_block_pass, read_by_head, rows_read

READ = {"class token": 1, "distilled": 2, "registers": 1, "deit3": 1, "query-key norm": 1, "attention norm": 1}
TOKENS = 16


def model_of(kind: str, *, low_rank: bool = False, masked: bool = False, **kwargs: Any) -> VisionTransformer:
    config = config_of(kind, svd_type="mix_head_fc_qk" if low_rank else "none")
    config = config.changed(
        num_classes=kwargs.pop("num_classes", config.num_classes),
        model_kwargs={**config.model_kwargs, **kwargs},
    )
    model = random_model(config)
    if masked:
        set_keep_mask(model, random_keep(model))
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def whole(model: VisionTransformer, batch: Tensor) -> Any:
    """The definition: all rows of all blocks, then the head."""
    return model.forward_head(model.forward_features(batch))


@pytest.fixture
def mlp_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each MLP was given, call after call; not a hook, for that would be noticed."""
    rows: list[int] = []
    forward = Mlp.forward
    monkeypatch.setattr(Mlp, "forward", lambda self, x: rows.append(x.shape[1]) or forward(self, x))
    return rows


@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked"])
@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "low-rank"])
@pytest.mark.parametrize("kind", READ)
@torch.no_grad()
def test_logits_are_those_of_all_rows(kind: str, low_rank: bool, masked: bool, mlp_rows: list[int]) -> None:
    model = model_of(kind, low_rank=low_rank, masked=masked)
    expected = whole(model, images())
    mlp_rows.clear()
    for change in (lambda model: None, prepare_inference):
        change(model)
        torch.testing.assert_close(model(images()), expected, rtol=1e-6, atol=1e-6)
        assert mlp_rows.pop() == READ[kind]
        assert mlp_rows.pop() == TOKENS + model.num_prefix_tokens


@pytest.mark.parametrize(
    "kwargs", [{"fc_norm": True}, {"num_classes": 0}, {"pre_norm": True}, {"no_embed_class": True}], ids=str
)
@torch.no_grad()
def test_heads_of_every_kind(kwargs: dict[str, Any], mlp_rows: list[int]) -> None:
    model = model_of("registers", **kwargs)
    expected = whole(model, images())
    torch.testing.assert_close(model(images()), expected, rtol=1e-6, atol=1e-6)
    assert mlp_rows[-1] == 1


@torch.no_grad()
def test_timm_computes_the_same() -> None:
    """Our way from images to the first block and from the last to the logits is timm's."""
    config = config_of("registers", model_kwargs={**config_of("registers").model_kwargs, "pre_norm": True})
    model = random_model(config)
    torch.testing.assert_close(model(images()), timm_twin(model, config)(images()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("kind", ["class token", "distilled", "query-key norm", "deit3"])
def test_gradients_are_those_of_all_rows(kind: str, recorded: bool, dtype: torch.dtype) -> None:
    """With drop-path, too, and with the reconstruction loss, which is over the rows that nobody reads as well."""
    model = model_of(kind, low_rank=True, masked=True, drop_path_rate=0.3).train()
    model, batch = (model.double(), images(6).double()) if dtype == torch.float64 else (model, images(6))
    results = []
    for forward in (model, lambda batch: whole(model, batch)):
        torch.manual_seed(3)
        model.zero_grad()
        half = torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16)
        with recording_reconstruction(model, recorded), half:
            logits = forward(batch)
            recon = reconstruction_loss(model)
            loss = logits.to(batch.dtype).square().sum()
            (loss if recon is None else loss + recon).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append({**gradients, "logits": logits.detach().to(batch.dtype), "reconstruction": recon})
    mine, expected = results
    if dtype == torch.float64:
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8)
    else:  # some gradients are 0, and in half precision noise: all of them as one vector
        ours, theirs = (torch.cat([one[name].flatten() for name in gradients]) for one in (mine, expected))
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("pool", ["avg", "avgmax", "max", "map", "prr"])
def test_heads_that_read_all_rows_get_them(pool: str, mlp_rows: list[int]) -> None:
    model = model_of("registers", global_pool=pool)
    assert rows_read(model) is None
    logits = model(images())
    assert mlp_rows[1] == TOKENS + model.num_prefix_tokens
    torch.testing.assert_close(logits, whole(model, images()), rtol=0, atol=0)


POOLS = [(kind, None) for kind in KINDS] + [
    ("registers", "avg"), ("registers", "avgmax"), ("registers", "map"), ("registers", "max"),
    ("registers", "prr"), ("registers", "include prefix"),
    ("DINOv3", "token"), ("DINOv3", "avg"), ("BEiT", "token"), ("BEiT", "avg"), ("relative position", "token"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "pool"), POOLS)
def test_what_the_head_reads(kind: str, pool: str | None) -> None:
    """The tokens of the last block that logits depend on are those that are named, and come out as they are."""
    kwargs = {} if pool is None else {"global_pool": pool}
    if pool == "include prefix":
        kwargs = {"global_pool": "avg", "pool_include_prefix": True}
    if (kind, pool) == ("relative position", "token"):
        kwargs["class_token"] = True
    model: Any = model_of(kind, **kwargs)
    with torch.no_grad():
        entering = tokens_of(model, images())
        *first, last = block_passes(model)
        for block in first:
            entering = block(entering)
        leaving = last(entering)
    leaving = leaving.detach().requires_grad_()
    logits = model.forward_head(model.norm(leaving))
    [gradient] = torch.autograd.grad(logits.square().sum(), leaving)
    depends = (gradient != 0).any(dim=2).any(dim=0)
    read = read_by_head(model)
    named = torch.zeros_like(depends)
    named[slice(None) if read is None else read] = True
    assert torch.equal(named, depends)
    part = last_block_pass(model, last)(entering)
    torch.testing.assert_close(part, leaving if read is None else leaving[:, read], rtol=1e-5, atol=1e-5)


def test_without_a_head_all_tokens_may_be_read() -> None:
    model = model_of("class token", num_classes=0)
    assert read_by_head(model) is None
    last = block_passes(model)[-1]
    assert last_block_pass(model, last) is last


def test_a_head_that_is_changed_afterwards() -> None:
    model = model_of("class token")
    model.reset_classifier(7, "avg")
    torch.testing.assert_close(model(images()), whole(model, images()), rtol=0, atol=0)
    model.reset_classifier(7, "token")
    assert rows_read(model) == 1


def test_blocks_of_another_kind_stay_whole() -> None:
    model = model_of("parallel blocks")
    assert rows_read(model) is None
    torch.testing.assert_close(model(images()), whole(model, images()), rtol=0, atol=0)


WATCHED: dict[str, Callable[[VisionTransformer], nn.Module]] = {
    "the block": lambda model: model.blocks[-1],
    "its attention": lambda model: model.blocks[-1].attn,
    "its projection": lambda model: model.blocks[-1].attn.proj,
    "its MLP": lambda model: model.blocks[-1].mlp.fc1,
    "the norm behind": lambda model: model.norm,
    "all blocks": lambda model: model.blocks,
}


@pytest.mark.parametrize("place", WATCHED)
def test_hooks_see_all_rows(place: str) -> None:
    model, seen = model_of("class token"), []
    hook = WATCHED[place](model).register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(images())
    assert seen == [TOKENS + 1]
    hook.remove()
    model(images())
    assert len(seen) == 1
    assert not model.blocks[-1]._forward_hooks


def test_hooks_on_every_module_see_all_rows() -> None:
    model, seen = model_of("class token"), []
    watch = lambda module, inputs, output: seen.append(output.shape[1]) if isinstance(module, Mlp) else None  # noqa: E731
    with nn.modules.module.register_module_forward_hook(watch):
        model(images())
    assert seen == [TOKENS + 1] * 2


def test_features_have_all_rows() -> None:
    model = model_of("class token")
    assert model.forward_features(images()).shape == (3, TOKENS + 1, 24)
    final, between = model.forward_intermediates(images(), output_fmt="NLC", return_prefix_tokens=True)
    assert final.shape == (3, TOKENS + 1, 24)
    assert [tokens.shape for tokens, _ in between] == [(3, TOKENS, 24)] * 2


def test_kernels_that_collect_see_all_rows() -> None:
    class Plain(Kernel):
        """A kernel of somebody who doesn't think of rows."""

        def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
            seen.append(heads.q.shape[2])
            return merge((heads.q @ heads.k.mT).softmax(dim=-1) @ heads.v)

    model, seen = model_of("class token"), []
    with using(model, lambda index: Plain()):
        model(images())
    assert seen == [TOKENS + 1] * 2
    _, sums = collect(model, images())
    torch.testing.assert_close(sums.sum(dim=-1), torch.ones_like(sums[..., 0]))


def test_a_forward_in_anothers_place_is_called_as_it_was() -> None:
    model, seen = model_of("class token"), []
    layer = attentions(model)[-1]
    layer.forward = lambda x, **unused: seen.append(x.shape[1]) or torch.zeros_like(x)
    logits = model(images())
    assert seen == [TOKENS + 1]
    torch.testing.assert_close(logits, whole(model, images()), rtol=0, atol=0)


def test_gradient_checkpointing_stays_whole(mlp_rows: list[int]) -> None:
    model = model_of("class token")
    model.set_grad_checkpointing()
    model(images()).sum().backward()
    assert set(mlp_rows) == {TOKENS + 1}


def saved(model: VisionTransformer) -> VisionTransformer:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: VisionTransformer = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_models_of_the_same_kind(copied: Callable[[VisionTransformer], VisionTransformer]) -> None:
    for kind in ("class token", "distilled"):
        model = model_of(kind, low_rank=True, masked=True)
        twin = copied(model)
        assert rows_read(twin) == READ[kind]
        torch.testing.assert_close(twin(images()), model(images()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_timms_names(kind: str) -> None:
    model = model_of(kind)
    assert list(model.state_dict()) == list(timm_twin(model, config_of(kind)).state_dict())


@torch.no_grad()
def test_compiled_in_one_piece() -> None:
    """Looking for those who watch doesn't break the graph; and hooks that come later are seen."""
    model, seen = model_of("class token", low_rank=True, masked=True), []
    expected = whole(model, images())
    model.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(images()), expected, rtol=1e-6, atol=1e-6)
    torch.compiler.reset()
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(images())
    assert seen == [TOKENS + 1]


@pytest.mark.parametrize("kind", ["class token", "distilled"])
@torch.no_grad()
def test_programs_compute_and_hold_only_these_rows(kind: str) -> None:
    model = model_of(kind, low_rank=True, masked=True)
    expected = whole(model, images())
    program = InferenceProgram(model, None, None)
    exported = torch.export.export(
        program, (images(),), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, strict=False
    ).module()
    torch.testing.assert_close(exported(images()), expected, rtol=1e-6, atol=1e-6)
    masks = [value.shape[-2] for name, value in exported.named_buffers() if name.endswith("additive")]
    assert masks == [TOKENS + model.num_prefix_tokens, READ[kind]]
