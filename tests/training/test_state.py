"""What is saved of a run, and when it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.utils.model_ema import ModelEmaV3
from tiny import tiny_config

from vitcod_cli.artifacts.describe import RUN_STATE
from vitcod_cli.artifacts.safetensors_file import write_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.evaluation.features import FeatureEvaluation
from vitcod_cli.model.build import build_model
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.training.optimizer_layout import optimizer_layout, tensors_of_shape
from vitcod_cli.training.position import Best, Position
from vitcod_cli.training.recipe import DenseRecipe, Recipe
from vitcod_cli.training.run_state import RunState, StateFile, differences, hyper_parameters
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


def test_the_position_of_a_model_without_a_head_comes_back(tmp_path: Path) -> None:
    score = FeatureEvaluation(0.9, 0.8, 0.4, 13)
    position = Position(best=Best(score, epoch=0, ema=False), last=score)
    file = StateFile(tmp_path / "state.safetensors")
    write(file, trained(), position)
    assert file.position() == position


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


# -- states that strangers have written -------------------------------------------------------


def saved(tmp_path: Path, **recipe: Any) -> RunState:
    """A run with a state in its folder, ready to load it."""
    state = trained(steps=1, **recipe)
    run = run_of(tmp_path, state)
    run.save(Position(step=1, updates=1, sums=[1.0, 1.0, 0.0, 8.0]))
    return run


def run_of(tmp_path: Path, state: Trained) -> RunState:
    layout = optimizer_layout(state.model, Recipe(), torch.device("cpu"))
    file = StateFile(tmp_path / "state.safetensors")
    parameters = hyper_parameters(Recipe())
    return RunState(file, replace(state, layout=layout), parameters, {"--seed": 0}, minutes=1, steps=5)


def tamper(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Rewrite a state after ``change(info, tensors)``."""
    file = StateFile(path)
    info, tensors = file.info(), file.tensors()
    change(info, tensors)
    write_safetensors(path, tensors, RUN_STATE, info)


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change of one entry of the JSON."""

    def change(info: Any, _: object) -> None:
        for key in keys[:-1]:
            info = info[key]
        info[keys[-1]] = value

    return change


def tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor] | None) -> Callable[[Any, Any], None]:
    """A change of one tensor; None takes it away."""

    def change(_: object, tensors: dict[str, torch.Tensor]) -> None:
        if make is None:
            del tensors[name]
        else:
            tensors[name] = make(tensors[name])

    return change


def nan(value: torch.Tensor) -> torch.Tensor:
    return value * float("nan")


EVALUATION = {"acc1": 1.0, "acc5": 2.0, "loss": 1.0, "images": 3}
MOMENT = "optimizer/head.weight/exp_avg"


@pytest.mark.parametrize(
    "change",
    [
        *(put("position", value=value) for value in (None, [], {}, "x", 1)),
        *(put("position", "epoch", value=value) for value in (-1, 1.5, True, "1", None, 2**70, float("nan"))),
        *(put("position", "step", value=value) for value in (5, -1, 10**9)),
        *(
            put("position", "sums", value=value)
            for value in (None, [1.0], [float("nan")] * 4, ["1"] * 4, [True] * 4)
        ),
        put("position", "trained", value=1),
        put("position", "more", value=1),
        put("position", "last", value=EVALUATION),
        put("position", "last", value={**EVALUATION, "acc1": "x"}),
        put("position", "last", value={**EVALUATION, "cosine": 1.0}),
        put("position", "best", value={"evaluation": EVALUATION, "epoch": 1}),
        *(put(part, value=value) for part in ("order", "hyper_parameters") for value in (None, [], 1)),
        *(put("optimizer", value=value) for value in (None, [], {})),
        *(put("optimizer", "groups", value=value) for value in (None, [3], [{"params": [1]}])),
        *(put("optimizer", "state", value=value) for value in (None, [], {"head.weight": 3})),
        *(
            put("scaler", value=value)
            for value in (None, [], {"scale": "x"}, {"scale": -1.0, "_growth_tracker": 0})
        ),
        tensor(MOMENT, None),
        tensor(MOMENT, lambda value: value[:1]),
        tensor(MOMENT, lambda value: value.long()),
        tensor(MOMENT, nan),
        tensor("optimizer/head.weight/step", lambda value: value - 10),
        tensor("optimizer/head.weight/step", lambda value: value.repeat(3)),
        tensor("model/head.weight", nan),
        tensor("ema/head.weight", nan),
    ],
)
def test_a_damaged_state_is_refused_in_a_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    run = saved(tmp_path)
    tamper(run.file.path, change)
    with pytest.raises(VitcodError) as error:
        run.load(SilentReporter())
    message = str(error.value)
    assert message.startswith(f"--resume {run.file.path} is damaged (")
    assert message.endswith("; start afresh with --overwrite.")
    assert message.isprintable()
    assert len(message) < len(str(run.file.path)) + 200


@pytest.mark.parametrize("opt", ["adamw", "lamb"])
def test_whatever_a_state_says_it_is_loaded_or_refused(tmp_path: Path, opt: str) -> None:
    """Each value of its JSON in turn is replaced by others; no step on what was loaded goes wrong."""

    def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        if path:
            yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, entry in list(items)[:4] if len(path) > 1 else items:
            yield from paths(entry, (*path, key))

    state = trained(steps=1, opt=opt)
    run = run_of(tmp_path, state)
    run.trained = replace(run.trained, layout=optimizer_layout(state.model, Recipe(opt=opt), torch.device("cpu")))
    run.save(Position())
    info, tensors = run.file.info(), run.file.tensors()
    loaded = 0
    for path in paths(info):
        if path[0] == "hyper_parameters" and path[1:2] != ("--lr",):
            continue
        for value in (None, True, -1, 1e308, float("nan"), 2**80, "\x1b[31m" * 2000, [], {}, [[]]):
            changed = deepcopy(info)
            put(*path, value=value)(changed, None)
            write_safetensors(run.file.path, tensors, RUN_STATE, changed)
            reporter, messages = SilentReporter(), []
            try:
                run.load(reporter)
                loaded += 1
            except VitcodError as error:
                messages.append(str(error))
            assert all(line.isprintable() and len(line) < 500 for line in reporter.warnings + messages), path
    step(run.trained, 1)
    assert loaded > 10


def test_a_state_cannot_change_what_the_optimizer_does(tmp_path: Path) -> None:
    run = saved(tmp_path)

    def change(info: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        hostile = {
            "maximize": True,
            "lr": 1e9,
            "eps": -1.0,
            "weight_decay": 5,
            "betas": "x",
            "foreach": 3,
            "params": 7,
        }
        info["optimizer"]["groups"] = [hostile] * 2
        tensors["group/0/params"] = torch.zeros(3)
        tensors["group/0/lr"] = torch.ones(())

    before = [{key: value for key, value in group.items() if key != "params"} for group in groups_of(run)]
    tamper(run.file.path, change)
    run.load(SilentReporter())
    after = [{key: value for key, value in group.items() if key != "params"} for group in groups_of(run)]
    assert after == before
    step(run.trained, 1)


def groups_of(run: RunState) -> list[dict[str, Any]]:
    return run.trained.optimizer.param_groups


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float16], ids=str)
@pytest.mark.parametrize("part", ["model/", "ema/"])
def test_weights_of_another_type_are_not_converted(tmp_path: Path, part: str, dtype: torch.dtype) -> None:
    run = saved(tmp_path)
    tensors, info = run.file.tensors(), run.file.info()
    name = next(name for name in tensors if name.startswith(part) and tensors[name].is_floating_point())
    write_safetensors(run.file.path, {**tensors, name: tensors[name].to(dtype)}, RUN_STATE, info)
    with pytest.raises(VitcodError, match=rf"is damaged .*is {dtype}, not torch.float32.*start afresh"):
        run.load(SilentReporter())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_state_that_was_cut_short(tmp_path: Path, share: float) -> None:
    run = saved(tmp_path)
    content = run.file.path.read_bytes()
    run.file.path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(VitcodError) as error:
        run.load(SilentReporter())
    assert str(run.file.path) in str(error.value)
    assert "start afresh with --overwrite" in str(error.value)
    run.file.boundary_path.write_bytes(content)
    with pytest.raises(VitcodError, match=r"put .*epoch\.safetensors in its place to go on from the last epoch"):
        run.load(SilentReporter())


def test_states_of_another_kind_or_version(tmp_path: Path) -> None:
    run = saved(tmp_path)
    tensors = {"x": torch.zeros(1)}
    write_safetensors(run.file.path, tensors, "checkpoint", {})
    with pytest.raises(VitcodError, match="is not a vitcod run state"):
        run.load(SilentReporter())
    save_file(tensors, run.file.path, {"vitcod": json.dumps({"format": RUN_STATE, "version": 99})})
    with pytest.raises(VitcodError, match="newer vitcod"):
        run.load(SilentReporter())


def test_the_state_between_epochs_is_missed_only_when_it_is_needed(tmp_path: Path) -> None:
    run = saved(tmp_path)
    assert run.load(SilentReporter()) == Position(step=1, updates=1, sums=[1.0, 1.0, 0.0, 8.0])
    other = replace(run, order={"--seed": 1})
    with pytest.raises(VitcodError, match=r"--seed 1 \(was 0\).*epoch\.safetensors.* is gone"):
        other.load(SilentReporter())
    damaged = tmp_path / "epoch.safetensors"
    damaged.write_text("half")
    with pytest.raises(VitcodError, match=r"epoch\.safetensors"):
        other.load(SilentReporter())


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb", "lion", "adafactor", "nadam", "lookahead_adamw"])
def test_a_state_of_each_optimizer_passes_its_own_check(tmp_path: Path, opt: str) -> None:
    state = trained(steps=7, opt=opt)
    layout = optimizer_layout(state.model, Recipe(opt=opt), torch.device("cpu"))
    run = RunState(StateFile(tmp_path / "state.safetensors"), replace(state, layout=layout), {}, {}, minutes=1)
    run.save(Position())
    run.load(SilentReporter())


def test_an_optimizer_whose_state_cannot_be_saved_is_refused_before_it_has_one() -> None:
    with pytest.raises(VitcodError, match=r"The state of this --opt can't be saved \(its Q\)"):
        optimizer_layout(build_model(tiny_config()), Recipe(opt="kron"), torch.device("cpu"))


def test_what_an_optimizer_keeps_decides_the_room_that_it_needs() -> None:
    model = build_model(tiny_config())
    numbers = {
        opt: tensors_of_shape(optimizer_layout(model, Recipe(opt=opt), torch.device("cpu")))
        for opt in ("adamw", "sgd", "lion")
    }
    assert numbers == {"adamw": 2, "sgd": 1, "lion": 1}


def test_a_state_is_known_by_its_launch(tmp_path: Path) -> None:
    run = replace(saved(tmp_path), launches={"slurm": "/7/0"})
    run.save(Position())
    assert run.file.info()["launches"] == {"slurm": "/7/0"}
