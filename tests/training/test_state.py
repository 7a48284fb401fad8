"""What is saved of a run, and when it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from tiny import tiny_config

from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.training.evaluate import Evaluation
from vitcod_cli.training.recipe import DenseRecipe, Recipe
from vitcod_cli.training.run_state import Best, Position, RunState, StateFile, differences, hyper_parameters
from vitcod_cli.training.schedule import make_optimizer
from vitcod_cli.training.trained import Trained


def trained(steps: int = 0, seed: int = 0, config: dict[str, Any] | None = None, **recipe: Any) -> Trained:
    """The tiny model after a few steps on noise."""
    torch.manual_seed(seed)
    model = build_model(tiny_config(**(config or {})))
    settings = Recipe(**recipe)
    ema = ModelEmaV3(model, decay=0.9) if settings.model_ema else None
    result = Trained(
        model, ema, make_optimizer(model, settings, lr=0.01), torch.amp.GradScaler("cpu", enabled=False)
    )
    step(result, steps)
    return result


def step(state: Trained, steps: int) -> None:
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.model)


def write(file: StateFile, state: Trained, position: Position) -> None:
    file.write(state.tensors(), {**state.values(), "hyper_parameters": {}, "order": {}}, position)


def same(one: Trained, other: Trained) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb", "lion", "adafactor", "nadam"])
def test_a_state_brings_everything_back(tmp_path: Path, opt: str) -> None:
    """Not only the tensors: the next steps must be the same too."""
    file, original = StateFile(tmp_path / "state.safetensors"), trained(steps=3, opt=opt)
    write(file, original, Position())
    restored = trained(seed=1, opt=opt)
    restored.load(file.tensors(), file.info())
    assert same(original, restored)
    for state in (original, restored):
        torch.manual_seed(5)
        step(state, 2)
    assert same(original, restored)


def test_position_comes_back(tmp_path: Path) -> None:
    best = Best(Evaluation(81.1, 95.2, 0.8, 100), epoch=3, ema=True)
    last = Evaluation(80.0, 94.0, float("nan"), 100)
    position = Position(epoch=4, step=7, updates=99, skipped=1, best=best, last=last, sums=[0.1, 0.2, 0.3, 64.0])
    file = StateFile(tmp_path / "state.safetensors")
    write(file, trained(), position)
    found = file.position()
    assert found.changed(last=None) == position.changed(last=None)
    assert found.last is not None
    assert str(found.last) == str(last)  # NaN is not equal to itself


def test_the_last_state_between_epochs_is_kept(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.safetensors")
    start, middle, later, end = (trained(seed=seed) for seed in range(4))
    write(file, start, Position(epoch=2, trained=True))
    write(file, middle, Position(epoch=3, step=1))
    write(file, later, Position(epoch=3, step=2))
    assert file.position() == Position(epoch=3, step=2)
    assert file.position(boundary=True) == Position(epoch=2, trained=True)
    restored = trained(seed=9)
    restored.load(file.tensors(boundary=True), file.info(boundary=True))
    assert same(restored, start)
    write(file, end, Position(epoch=3, trained=True))
    assert file.position(boundary=True) == Position(epoch=3, trained=True)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    file = StateFile(tmp_path / "state.safetensors")
    write(file, trained(), Position())
    write(file, trained(), Position(step=1))
    assert file.position(boundary=True) == Position()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"opt": "sgd"}, "--opt"),
        ({"config": {"num_classes": 6}}, "another model"),
        ({"config": {"svd_type": "mix_head_fc_qk"}}, "another model"),
    ],
)
def test_another_model_or_optimizer_is_refused(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    file = StateFile(tmp_path / "state.safetensors")
    write(file, trained(steps=1), Position())
    with pytest.raises(VitcodError, match=words):
        trained(**other).load(file.tensors(), file.info())


def test_averaging_can_be_switched_on_and_off(tmp_path: Path) -> None:
    file, original = StateFile(tmp_path / "state.safetensors"), trained(steps=2, model_ema=False)
    write(file, original, Position())
    averaged = trained(seed=1)
    averaged.load(file.tensors(), file.info())
    assert averaged.ema is not None
    torch.testing.assert_close(averaged.ema.module.state_dict(), dict(original.model.state_dict()))
    write(file, averaged, Position())
    trained(model_ema=False).load(file.tensors(), file.info())


def test_weights_that_are_not_finite_never_replace_a_state(tmp_path: Path) -> None:
    file, state = StateFile(tmp_path / "state.safetensors"), trained()
    run_state = RunState(file, state, hyper_parameters={}, order={}, minutes=1)
    run_state.save(Position(epoch=1, step=3))
    before = file.path.read_bytes()
    with torch.no_grad():
        state.model.head.weight[0, 0] = float("nan")
    with pytest.raises(VitcodError, match=r"not finite after step 4 of epoch 2.*from step 3 of epoch 2"):
        run_state.save(Position(epoch=1, step=4))
    assert file.path.read_bytes() == before


def test_state_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"not a state")
    with pytest.raises(VitcodError, match="--resume"):
        StateFile(path).info()


def test_differences_are_named_by_flag() -> None:
    then, now = hyper_parameters(Recipe()), hyper_parameters(Recipe(lr=1.0, model_ema=False, save_every=3.0))
    assert json.loads(json.dumps(then)) == then
    assert differences(then, now) == ["--lr 1.0 (was 0.0001)", "--model-ema False (was True)"]
    assert differences(then, then) == []
    assert len(differences(then, hyper_parameters(DenseRecipe()))) == 3
