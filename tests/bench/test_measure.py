"""What is run and compared; never how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.bench import measure as module
from vitcod_cli.bench.measure import Results, measure
from vitcod_cli.bench.settings import BenchOptions
from vitcod_cli.bench.workload import (
    DROP_PATH,
    RECON_WEIGHT,
    Work,
    for_inference,
    forward_pass,
    make_optimizer,
    timm_twin,
    training_step,
    without_mask,
)
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, attentions, keep_mask, set_keep_mask
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import Runtime, RuntimeSettings, start
from vitcod_cli.training.recipe import Recipe


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with start(RuntimeSettings(device="cpu", threads=1)) as runtime:
        yield runtime


@pytest.fixture
def model(tiny_config: ModelConfig) -> VisionTransformer:
    """Low-rank, and masked to its prefix and diagonal."""
    model = build_model(tiny_config.changed(svd_type="mix_head_fc_qk"), drop_path=DROP_PATH)
    keep = torch.eye(17, dtype=torch.bool).expand(attention_shape(model)).clone()
    keep[..., 0] = keep[..., 0, :] = True
    set_keep_mask(model, keep)
    return model


def weights_of(model: VisionTransformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quick(runtime: Runtime, models: dict[str, VisionTransformer], **settings: Any) -> Results:
    values: dict[str, Any] = {"batch_size": [2], "repeats": 3, "seconds": 0.0, "warmup": 1, **settings}
    return measure(models, BenchOptions(checkpoint="any", **values), runtime, SilentReporter())


def test_the_recipes_defaults() -> None:
    assert Recipe().drop_path == DROP_PATH
    assert Recipe().recon_weight == RECON_WEIGHT


def test_forward_passes_leave_the_weights(model: VisionTransformer, runtime: Runtime) -> None:
    before = weights_of(model)
    results = quick(runtime, {"model": model}, training=False)
    assert [one.mode for one in results.measurements] == ["forward"]
    assert same(weights_of(model), before)


def test_auto_encoders_are_folded_for_forward_passes_and_trained_in_steps(
    model: VisionTransformer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, seen = torch.randn(2, 3, 32, 32), []
    folded = for_inference(model)
    assert [layer.svd_type for layer in attentions(folded)] == ["none", "none"]
    assert torch.equal(keep_mask(folded), keep_mask(model))  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.allclose(folded.eval()(images), model.eval()(images), atol=1e-6)

    def compiled(model: VisionTransformer) -> VisionTransformer:
        seen.append(attentions(model)[0].svd_type)
        return model

    monkeypatch.setattr(Runtime, "compiled", lambda _, model: compiled(model))
    quick(runtime, {"model": model})
    assert seen == ["none", "mix_head_fc_qk"]


def test_a_model_without_auto_encoders_is_not_copied(tiny_config: ModelConfig) -> None:
    for model in (build_model(tiny_config), timm_twin(build_model(tiny_config))):
        assert for_inference(model) is model


def test_a_training_step_is_that_of_fine_tuning(
    model: VisionTransformer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        assert model.training
        seen.append(torch.stack([layer.reconstruction_loss for layer in attentions(model)]).sum())  # type: ignore[arg-type]
        return torch.zeros((), requires_grad=True) * logits.sum()  # so that the reconstruction loss alone teaches

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)
    before = weights_of(model)
    with training_step(model, make_optimizer(model), 4, runtime) as work:
        work.run()
        work.run()
    after = weights_of(model)
    assert seen[1] < seen[0], "a step on the same batch lowers what it minimises"
    assert not torch.equal(after["blocks.0.attn.encoder_q.weight"], before["blocks.0.attn.encoder_q.weight"])
    assert not model.training
    for layer in attentions(model):
        assert not layer.record_reconstruction
        assert layer.reconstruction_loss is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_training_step_learns_the_task(
    tiny_config: ModelConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, losses = build_model(tiny_config), []
    true_loss = F.cross_entropy

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        losses.append(true_loss(logits, targets))
        return losses[-1]

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)
    with training_step(model, make_optimizer(model), 4, runtime) as work:
        for _ in range(8):
            work.run()
    assert losses[-1] < losses[0]


def test_without_mask_is_the_same_model(model: VisionTransformer, runtime: Runtime) -> None:
    keep, images = keep_mask(model), torch.randn(2, 3, 32, 32)
    assert keep is not None
    twin = without_mask(model)
    assert keep_mask(twin) is None
    assert torch.equal(keep_mask(model), keep), "the mask stays where it was"  # type: ignore[arg-type]
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True)), "no second copy"
    quick(runtime, {"model": model, "no mask": twin})
    assert torch.equal(keep_mask(model), keep)  # type: ignore[arg-type]
    assert keep_mask(twin) is None
    set_keep_mask(model, torch.ones_like(keep))
    with torch.no_grad():
        assert torch.allclose(model.eval()(images), twin.eval()(images), atol=1e-6)


def test_timms_twin_is_timms(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config).eval()
    twin, images = timm_twin(model).eval(), torch.randn(2, 3, 32, 32)
    assert attentions(twin) == []
    assert sum(type(part) is Attention for part in twin.modules()) == 2
    with torch.no_grad():
        assert torch.allclose(model(images), twin(images), atol=1e-6)


def test_every_mode_batch_size_and_model(model: VisionTransformer, runtime: Runtime) -> None:
    models = {"model": model, "no mask": without_mask(model), "timm": timm_twin(model)}
    results = quick(runtime, models, batch_size=[1, 3, 1])
    cases = [(one.mode, one.batch_size, one.model) for one in results.measurements]
    assert cases == [(mode, size, name) for mode in ("forward", "training") for size in (1, 3) for name in models]
    assert {len(one.seconds) for one in results.measurements} == {4}, "three, and one for even rounds"
    compared = [(one.mode, one.batch_size, one.against) for one in results.comparisons]
    assert compared == [case for case in cases if case[2] != "model"]
    assert {one.pairs for one in results.comparisons} == {4}


def test_models_take_turns(tiny_config: ModelConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    models, passes = {name: build_model(tiny_config) for name in "AB"}, []

    @contextmanager
    def recorded(model: VisionTransformer, batch_size: int, runtime: Runtime) -> Iterator[Work]:
        name = next(name for name in models if models[name] is model)
        yield Work(lambda: passes.append(name), lambda: None)

    monkeypatch.setattr(module, "forward_pass", recorded)
    quick(runtime, models, training=False, warmup=2, repeats=4)
    assert "".join(passes) == "AAA" + "BBB" + "AB" + "BA" + "AB" + "BA", "warm-up and memory first"


def test_models_of_the_same_weights_share_the_optimizers_state(model: VisionTransformer, runtime: Runtime) -> None:
    optimizers = module._Optimizers()
    assert optimizers.of(model) is optimizers.of(without_mask(model))
    assert optimizers.of(model) is not optimizers.of(timm_twin(model))


def test_nothing_is_held_between_cases(
    model: VisionTransformer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(module, "make_optimizer", lambda model: made.append(make_optimizer(model)) or made[-1])
    quick(runtime, {"model": model})
    assert [len(optimizer.state) for optimizer in made] == [0]


def test_the_peak_of_a_step_includes_gradients_and_optimizer(
    tiny_config: ModelConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the memory is taken, there is neither: the pass makes both."""
    model, optimizer = build_model(tiny_config), []
    monkeypatch.setattr(
        module, "make_optimizer", lambda model: optimizer.append(make_optimizer(model)) or optimizer[0]
    )

    def peak_memory(run: Any, model: VisionTransformer, device: torch.device) -> int:
        if model.training:
            assert not optimizer[0].state
            assert all(parameter.grad is None for parameter in model.parameters())
        return 12345

    monkeypatch.setattr(module, "peak_memory", peak_memory)
    results = quick(runtime, {"model": model})
    assert [one.peak_bytes for one in results.measurements] == [12345, 12345]


def test_out_of_memory_is_a_row(
    tiny_config: ModelConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = build_model(tiny_config), build_model(tiny_config)

    @contextmanager
    def limited(model: VisionTransformer, batch_size: int, runtime: Runtime) -> Iterator[Work]:
        def run() -> None:
            if model is large and batch_size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        yield Work(run, lambda: None)

    monkeypatch.setattr(module, "forward_pass", limited)
    results = quick(runtime, {"model": small, "against": large}, batch_size=[4, 2], training=False)
    rows = {(one.batch_size, one.model): one for one in results.measurements}
    assert [key for key, one in rows.items() if one.out_of_memory] == [(4, "against")]
    row = rows[4, "against"].to_dict()
    assert row["out_of_memory"] is True
    assert row["median_ms"] is None
    assert [one.batch_size for one in results.comparisons] == [2]


def test_another_error_is_not_out_of_memory(
    tiny_config: ModelConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(*_: object) -> Iterator[Work]:
        raise RuntimeError("a defect")
        yield

    monkeypatch.setattr(module, "forward_pass", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        quick(runtime, {"model": build_model(tiny_config)})


def test_forward_in_lower_precision(model: VisionTransformer) -> None:
    seen = []
    with start(RuntimeSettings(device="cpu", threads=1, precision="bfloat16")) as runtime:
        model.head.register_forward_hook(lambda *call: seen.append((call[2].dtype, call[2].is_inference())))
        with forward_pass(model.train(), 2, runtime) as work:
            work.run()
    assert seen == [(torch.bfloat16, True)]
    assert not model.training
