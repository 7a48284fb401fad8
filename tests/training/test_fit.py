"""Whole trainings of a tiny model, in this process."""

from __future__ import annotations

import os
import shutil
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same, metrics, weights
from tiny import NO_CHANCE, Colours, tiny_config, train
from torch import Tensor, nn

from vitcod_cli.errors import Interrupted, VitcodError
from vitcod_cli.model.build import build_model, plain_model
from vitcod_cli.model.layers import attentions, set_keep_mask
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.training.position import Position
from vitcod_cli.training.run_state import RunState, StateFile

# Learnt to 100 % in an epoch or two.
EASY: dict[str, Any] = {"epochs": 3, "lr": 2.0, "drop_path": 0.0, "augmentation": NO_CHANCE, "train_images": 80}


@pytest.fixture(scope="module")
def skilled(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A model that knows its colours. Copy it before training it."""
    return train(tmp_path_factory.mktemp("skilled") / "run", **EASY)[1]


class Saboteur(SilentReporter):
    """Sends this process a signal after so many steps, or when a piece of work begins."""

    def __init__(self, number: int, after_steps: int = -1, at: str = "") -> None:
        super().__init__()
        self.number, self.left, self.at = number, after_steps, at
        self.infos: list[str] = []

    def info(self, text: str) -> None:
        self.infos.append(text)

    def progress(self, description: str, total: float | None, unit: str = "images") -> Any:
        if self.at and description.startswith(self.at):
            os.kill(os.getpid(), self.number)
        return super().progress(description, total, unit) if self.left < 0 else _Counting(self, description)


class _Counting:
    def __init__(self, owner: Saboteur, description: str) -> None:
        self.owner, self.counts = owner, description.startswith("epoch")

    def __enter__(self) -> _Counting:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, amount: float = 1, **figures: float | str) -> None:
        if self.counts:
            self.owner.left -= 1
            if self.owner.left == 0:
                os.kill(os.getpid(), self.owner.number)


class Telling(SilentReporter):
    """Remembers the lines too."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[str] = []

    def info(self, text: str) -> None:
        self.infos.append(text)


def test_training_learns(tmp_path: Path) -> None:
    result, model = train(tmp_path / "run", **EASY)
    assert result.best.acc1 > 90
    assert result.last.images == 21
    assert (result.epochs, len(metrics(tmp_path / "run"))) == (3, 3)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "README.md",
        "best.safetensors",
        "last.safetensors",
        "metrics.csv",
        "metrics.jsonl",
        "state.safetensors",
    }
    saved = weights(tmp_path / "run", "last")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_figures_of_every_epoch(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=2)
    lines = metrics(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert line["train_loss"] == pytest.approx(line["train_task_loss"] + 1e-4 * line["train_recon_loss"])
        assert line["train_recon_loss"] > 0
        assert {"lr", "acc1", "acc5", "loss", "ema_acc1", "ema_acc5", "ema_loss"} <= line.keys()
        assert min(line["images_per_second"], line["memory_mb"], line["seconds"]) > 0


def test_the_log_says_the_real_batch_and_learning_rate(tmp_path: Path) -> None:
    reporter = Telling()
    train(tmp_path / "run", epochs=1, accumulate_steps=2, lr=0.64, min_lr=0.1, reporter=reporter)
    assert (
        "Global batch 16 (8 x 1 process x 2 accumulated), learning rate 0.02 (0.64 x 16 / 512), 2 steps per epoch"
        in (reporter.infos[0])
    )
    assert any("below --min-lr 0.1" in warning for warning in reporter.warnings)


def test_nothing_of_epochs_is_said_where_there_are_none(tmp_path: Path) -> None:
    reporter = Telling()
    train(tmp_path / "run", epochs=0, batch_size=64, lr=0.64, min_lr=0.1, warmup_epochs=5, reporter=reporter)
    assert reporter.warnings == [], "neither of a batch larger than the images, nor of a learning rate"
    assert not any("learning rate" in line for line in reporter.infos)


@pytest.mark.parametrize("after_steps", [1, 4, 5, 7])
def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path, after_steps: int) -> None:
    """In mid-epoch, at its last step and in the second epoch; all augmentation, drop-path and averaging on."""
    options: dict[str, Any] = {"epochs": 3, "model_ema_decay": 0.9}
    train(tmp_path / "whole", **options)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "cut", reporter=Saboteur(signal.SIGTERM, after_steps), **options)
    assert stopped.value.code == 143
    train(tmp_path / "cut", resume=True, **options)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_stopped_during_evaluation_loses_no_training(tmp_path: Path) -> None:
    train(tmp_path / "whole", epochs=2)
    reporter = Saboteur(signal.SIGINT, at="eval of the EMA")
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "cut", epochs=2, reporter=reporter)
    assert stopped.value.code == 130
    assert "--resume" in reporter.warnings[-1]
    position = StateFile(tmp_path / "cut" / "state.safetensors").position()
    assert (position.epoch, position.step, position.trained) == (0, 5, True)
    train(tmp_path / "cut", epochs=2, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_signals_are_ours_only_while_training(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    train(tmp_path / "run", epochs=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first, _ = train(tmp_path / "run", epochs=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("[blm]*")}
    reporter = Telling()
    second, _ = train(tmp_path / "run", epochs=2, resume=True, reporter=reporter)
    assert second == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("[blm]*")} == before
    assert "All epochs are trained already." in reporter.infos


def test_resuming_a_finished_run_for_longer_says_so(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1, sched="constant")
    reporter = Telling()
    train(tmp_path / "run", epochs=2, sched="constant", lr=0.07, resume=True, reporter=reporter)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert any("--epochs 2 (was 1), --lr 0.07 (was 0.05)" in warning for warning in reporter.warnings)


def test_resume_without_a_state_starts(tmp_path: Path) -> None:
    reporter = Telling()
    train(tmp_path / "run", epochs=1, resume=True, reporter=reporter)
    assert any("starting from the beginning" in line for line in reporter.infos)
    assert len(metrics(tmp_path / "run")) == 1


def test_another_batch_size_goes_on_from_the_start_of_the_epoch(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", epochs=3, reporter=Saboteur(signal.SIGTERM, 7))
    reporter = Telling()
    train(tmp_path / "run", epochs=3, batch_size=4, resume=True, reporter=reporter)
    assert "--batch-size 4 (was 8)" in reporter.warnings[0]
    assert "start of epoch 2" in reporter.warnings[0]
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert StateFile(tmp_path / "run" / "state.safetensors").position().updates == 5 + 10 + 10


def test_a_restarted_run_goes_on_without_being_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", epochs=2, reporter=Saboteur(signal.SIGTERM, 7))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    reporter = Telling()
    train(tmp_path / "run", epochs=2, resume=False, reporter=reporter)
    assert reporter.infos[0].startswith("Going on from step 2 of epoch 2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    with pytest.raises(VitcodError, match="not empty"):
        train(tmp_path / "run", epochs=2)


def test_save_every_step_and_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    original = StateFile.write

    def write(self: StateFile, tensors: Any, info: Any, position: Any) -> None:
        written.append((position.epoch, position.step))
        original(self, tensors, info, position)

    monkeypatch.setattr(StateFile, "write", write)
    train(tmp_path / "often", epochs=1, save_every=0)
    assert written == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 5), (1, 0)]
    written.clear()
    train(tmp_path / "rarely", epochs=1)
    assert written == [(0, 0), (0, 5), (1, 0)]


def test_gradients_of_two_half_batches_are_those_of_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"augmentation": NO_CHANCE, "drop_path": 0.0, "recon_weight": 0.0, "epochs": 2}
    train(tmp_path / "one", batch_size=8, **options)
    train(tmp_path / "two", batch_size=4, accumulate_steps=2, **options)
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    torch.testing.assert_close(
        weights(tmp_path / "two", "last"), weights(tmp_path / "one", "last"), rtol=1e-3, atol=1e-5
    )


def test_max_steps_stop_early_and_can_be_raised(tmp_path: Path) -> None:
    train(tmp_path / "whole", epochs=3)
    for steps, lines in ((3, 1), (5, 1), (7, 2)):
        train(tmp_path / "cut", epochs=3, max_steps=steps, resume=True)
        assert StateFile(tmp_path / "cut" / "state.safetensors").position().updates == steps
        assert len(metrics(tmp_path / "cut")) == lines
    train(tmp_path / "cut", epochs=3, resume=True)
    last, whole = weights(tmp_path / "cut", "last"), weights(tmp_path / "whole", "last")
    assert all(torch.equal(last[name], whole[name]) for name in whole)


def test_no_epochs_only_evaluate_and_save(tmp_path: Path) -> None:
    model = build_model(tiny_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result, _ = train(tmp_path / "run", epochs=0, model=model)
    assert (result.epochs, result.best_epoch, result.best) == (0, 0, result.last)
    for name in ("best", "last"):
        saved = weights(tmp_path / "run", name)
        assert all(torch.equal(saved[key], value) for key, value in before.items())


def test_an_evaluation_without_epochs_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the run is killed between that line and the state that says so."""

    def save(state: RunState, position: Position) -> None:
        if position.last is not None:
            raise VitcodError("killed")
        write(state, position)

    write = RunState.save
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", save)
        with pytest.raises(VitcodError, match="killed"):
            train(tmp_path / "run", epochs=0)
    for _ in range(2):
        train(tmp_path / "run", epochs=0, resume=True)
        assert [line["epoch"] for line in metrics(tmp_path / "run")] == [0]


def test_averaged_weights_are_saved_when_they_are_better(tmp_path: Path, skilled: nn.Module) -> None:
    """A learning rate that wrecks the weights; their average, hardly moved, stays good."""
    reporter = Telling()
    result, _ = train(tmp_path / "run", epochs=1, lr=50.0, model=deepcopy(skilled), reporter=reporter)
    assert result.best_is_ema
    assert result.best.acc1 > result.last.acc1
    assert any("the EMA weights are the best so far" in line for line in reporter.infos)
    state, best = weights(tmp_path / "run"), weights(tmp_path / "run", "best")
    assert all(torch.equal(best[name], state[f"ema/{name}"]) for name in best)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_is_updated_every_step(tmp_path: Path, decay: float) -> None:
    """After two steps: d^2 w0 + d (1 - d) w1 + (1 - d) w2."""
    seen = []
    for steps in (1, 2):
        train(tmp_path / "run", max_steps=steps, resume=True, model_ema_decay=decay)
        seen.append(weights(tmp_path / "run"))
    train(tmp_path / "start", epochs=0)
    first = weights(tmp_path / "start")
    for name in [name for name in first if name.startswith("model/")]:
        w0, w1, w2 = (state[name] for state in (first, *seen))
        expected = decay**2 * w0 + decay * (1 - decay) * w1 + (1 - decay) * w2
        torch.testing.assert_close(seen[1][name.replace("model/", "ema/")], expected)
    assert not torch.equal(seen[0]["model/head.weight"], seen[1]["model/head.weight"])


def test_eval_every(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=5, eval_every=2)
    assert ["acc1" in line for line in metrics(tmp_path / "run")] == [False, True, False, True, True]


def test_mask_stays_and_is_saved(tmp_path: Path) -> None:
    model = build_model(tiny_config(svd_type="mix_head_fc_qk"))
    keep = torch.rand(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    set_keep_mask(model, keep | torch.eye(5, dtype=torch.bool))
    mask = [layer.keep.clone() for layer in attentions(model) if layer.keep is not None]
    train(tmp_path / "run", epochs=1, model=model)
    saved = weights(tmp_path / "run", "last")
    assert all(torch.equal(saved[f"blocks.{i}.attn.keep"], mask[i]) for i in range(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 7}, ["--batch-size 7", "--mixup 0"]),
        ({"accumulate_steps": 9}, ["--accumulate-steps 9"]),
        ({"opt": "adamww"}, ["--opt adamww", "did you mean"]),
        ({"teacher": nn.Linear(3, 5), "distill_from": "small.pth"}, ["--distill-from small.pth fails", "3x16x16"]),
        ({"config": {"num_classes": 3}}, ["5 classes", "--num-classes 5"]),
        ({"teacher": build_model(tiny_config(num_classes=6))}, ["teacher has 6 classes"]),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(VitcodError) as error:
        train(tmp_path / "run", **options)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "run").exists()


# -- disks that fill ---------------------------------------------------------------------------


def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Config, state, the state between epochs, checkpoints: each in its turn."""
    options: dict[str, Any] = {"epochs": 2, "save_every": 0, "train_images": 16}
    train(tmp_path / "whole", **options)
    messages = []
    for number in range(100):
        calls = []

        def fsync(descriptor: int, calls: list[int] = calls, number: int = number) -> None:
            calls.append(descriptor)
            if len(calls) == number + 1:
                raise OSError(28, "No space left on device")

        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                train(folder, **options)
            except VitcodError as error:
                messages.append(str(error))
        if len(calls) <= number:
            break
        train(folder, resume=True, **options)
        assert_same(tmp_path / "whole", folder)
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".") or "lock" in path.name]
    assert len(messages) > 12
    assert all(message.startswith(f"The disk is full: {tmp_path}") for message in messages)


def test_metrics_that_cannot_be_written_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(path: Path, line: bytes) -> None:
        path.write_bytes(line[:7])
        raise OSError(28, "No space left on device")

    train(tmp_path / "whole", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr("vitcod_cli.artifacts.metrics_file.append", append)
        with pytest.raises(VitcodError, match=r"Can't write .*metrics\.jsonl \(No space left on device\)"):
            train(tmp_path / "run", epochs=2)
    train(tmp_path / "run", epochs=2, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_folder_that_was_removed_ends_the_run(tmp_path: Path) -> None:
    class Remover(SilentReporter):
        def progress(self, description: str, total: float | None, unit: str = "images") -> Any:
            if description == "epoch 2/3":
                shutil.rmtree(tmp_path / "run")
            return super().progress(description, total, unit)

    with pytest.raises(VitcodError, match="was removed while the run went on"):
        train(tmp_path / "run", epochs=3, reporter=Remover())
    assert not (tmp_path / "run").exists()


# -- losses that aren't finite ----------------------------------------------------------------


INFINITE = {"kind": "inf", "step": 3}


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path: Path) -> None:
    with pytest.raises(VitcodError) as error:
        train(tmp_path / "run", mishap=INFINITE, augmentation=NO_CHANCE)
    message = str(error.value)
    assert "not finite in step 3 of epoch 1" in message
    assert message.count("colour-") == 8
    assert "The last good state, from step 2 of epoch 1" in message
    assert "--skip-nonfinite" in message
    state = StateFile(tmp_path / "run" / "state.safetensors")
    assert state.position().updates == 2
    assert all(torch.isfinite(value).all() for value in state.tensors().values())


def test_steps_that_are_not_finite_can_be_skipped(tmp_path: Path) -> None:
    reporter = Telling()
    train(tmp_path / "run", mishap=INFINITE, skip_nonfinite=1, reporter=reporter)
    assert sum("not finite in step 3 of epoch 1" in warning for warning in reporter.warnings) == 1
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())
    first, second = metrics(tmp_path / "run")
    assert first["train_loss"] < 3 > second["train_loss"]
    assert StateFile(tmp_path / "run" / "state.safetensors").position().skipped == 1


# -- distillation -----------------------------------------------------------------------------


class Mislabelled(Colours):
    def load(self, index: int) -> Any:
        image, target = super().load(index)
        return image, (target + 1) % 5


@pytest.mark.parametrize(("recipe", "learns"), [({"distill_from": "teacher"}, True), ({}, False)])
def test_distillation_alone_needs_no_labels(
    tmp_path: Path, skilled: nn.Module, recipe: dict[str, Any], learns: bool
) -> None:
    """With labels that are all wrong, the student can learn from its teacher only."""
    data = Mislabelled(80, seed=1)
    result, _ = train(tmp_path / "run", train_data=data, teacher=deepcopy(skilled), **EASY, **recipe)
    assert (result.best.acc1 > 90) == learns


def inputs_of(teacher: nn.Module) -> list[Tensor]:
    """What ``teacher`` gets to see from now on."""
    seen: list[Tensor] = []
    teacher.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    return seen


@pytest.mark.parametrize("published", [True, False], ids=["timm model", "checkpoint"])
def test_a_teacher_of_another_normalisation_sees_images_normalised_its_way(
    tmp_path: Path, published: bool
) -> None:
    """AugReg's ViTs take (pixel - 0.5) / 0.5, and the student ImageNet's mean and standard deviation."""
    config = tiny_config(model="vit_tiny_patch16_224")
    build = plain_model if published else build_model
    teacher = build(config)
    assert teacher.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    seen = inputs_of(teacher)
    train(tmp_path / "run", teacher=teacher, distill_from="x", epochs=1, augmentation=NO_CHANCE, model_ema=False)
    pixels = (torch.cat(seen[1:]) * 0.5 + 0.5) * 255
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    data = Colours(40, seed=1)
    expected = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in data.images]).float()
    distances = (pixels[:, None] - expected).abs().amax(dim=(2, 3, 4))
    assert distances.min(dim=1).values.max() < 0.1


def test_a_teacher_of_the_same_normalisation_sees_the_very_images_of_the_student(tmp_path: Path) -> None:
    student, teacher = (build_model(tiny_config()) for _ in range(2))
    seen, expected = inputs_of(teacher), inputs_of(student)
    train(tmp_path / "run", model=student, teacher=teacher, distill_from="x", epochs=1, model_ema=False)
    assert len(seen) == 6, "one more, to see whether it takes them"
    assert all(torch.equal(one, other) for one, other in zip(seen[1:], expected, strict=False))


def test_a_distilled_model_trains_both_heads(tmp_path: Path) -> None:
    distilled = {"model": "deit_tiny_distilled_patch16_224", "svd_type": "none"}
    teacher = build_model(tiny_config())
    result, model = train(
        tmp_path / "run", config=distilled, distill="hard", teacher=teacher, epochs=1, recipe_teacher="x"
    )
    assert isinstance(model(torch.zeros(1, 3, 16, 16)), tuple)
    assert isinstance(model.eval()(torch.zeros(1, 3, 16, 16)), Tensor)
    assert result.last.images == 21
    moments = [name for name in weights(tmp_path / "run") if name.startswith("optimizer/head_dist.weight/exp_avg")]
    assert len(moments) == 2
