"""The recipe against DeiT's main.py, in formulas of the test's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny_config

from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.training.recipe import DenseRecipe, LowRankRecipe, Recipe, SparseRecipe
from vitcod_cli.training.schedule import EpochSchedule, make_optimizer


def epoch_lrs(recipe: Recipe, processes: int = 1) -> list[float]:
    """The learning rate of every epoch that is trained, for a run of ``processes`` processes."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.scaled_lr(processes))
    schedule = EpochSchedule(optimizer, recipe)
    return [schedule.set_epoch(epoch) for epoch in range(recipe.total_epochs)]


def deit_lr(epoch: int, *, peak: float, min_lr: float, epochs: int, warmup: int = 5, start: float = 1e-6) -> float:
    """What DeiT trains ``epoch`` with: its loop sets the rate of the epoch before, behind it."""
    t = max(epoch - 1, 0)
    if t < warmup:
        return start + t * (peak - start) / warmup
    return min_lr + (peak - min_lr) * (1 + math.cos(math.pi * t / epochs)) / 2


@pytest.mark.parametrize(
    ("recipe", "processes", "peak"),
    [
        (LowRankRecipe(), 8, 1e-4),  # the published step 1: 8 GPUs with 64 images each are a batch of 512
        (SparseRecipe(), 8, 1e-5),
        (LowRankRecipe(batch_size=256, accumulate_steps=2), 4, 4e-4),
        (LowRankRecipe(lr=3e-4), 1, 3e-4 / 8),
        (LowRankRecipe(lr=3e-4, unscale_lr=True), 1, 3e-4),
        (DenseRecipe(), 8, 5e-4),
        (LowRankRecipe(epochs=7), 8, 1e-4),
        (LowRankRecipe(epochs=30, warmup_epochs=0), 8, 1e-4),
    ],
)
def test_learning_rates_are_deits(recipe: Recipe, processes: int, peak: float) -> None:
    expected = [
        deit_lr(epoch, peak=peak, min_lr=recipe.min_lr, epochs=recipe.epochs, warmup=recipe.warmup_epochs)
        for epoch in range(recipe.epochs)
    ]
    assert epoch_lrs(recipe, processes) == pytest.approx(expected, rel=1e-12)


def test_published_schedule_in_words() -> None:
    lrs = epoch_lrs(LowRankRecipe(), processes=8)
    assert len(lrs) == 100
    assert lrs[0] == lrs[1] == 1e-6
    assert max(lrs) == lrs[6] == pytest.approx(1e-4, rel=0.01)  # the warm-up ends; the cosine is 5 epochs in
    assert lrs[2:7] == sorted(lrs[2:7])
    assert lrs[6:] == sorted(lrs[6:], reverse=True)
    assert 5e-6 < lrs[-1] < 5.2e-6  # DeiT stops two steps before the cosine's end


def test_cooldown_is_trained_only_on_request() -> None:
    published, cooled = LowRankRecipe(), LowRankRecipe(run_cooldown=True)
    assert epoch_lrs(cooled)[:100] == epoch_lrs(published)
    assert epoch_lrs(cooled)[101:] == [5e-6] * 9


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 5)])
def test_warmup_leaves_room_in_short_runs(epochs: int, warmup: int) -> None:
    recipe = LowRankRecipe(epochs=epochs)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-4)
    schedule = EpochSchedule(optimizer, recipe)
    assert schedule.warmup_epochs == warmup
    assert (schedule.set_epoch(0) == 1e-6) == (warmup > 0)


def test_rate_of_an_epoch_does_not_depend_on_the_epochs_before() -> None:
    recipe = LowRankRecipe(epochs=20)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.scaled_lr(1))
    assert EpochSchedule(optimizer, recipe).set_epoch(13) == epoch_lrs(recipe)[13]


@pytest.mark.parametrize("sched", ["tanh", "poly", "step", "constant"])
def test_other_schedules_start_at_the_warmup_and_fall(sched: Any) -> None:
    lrs = epoch_lrs(LowRankRecipe(sched=sched), processes=8)
    assert lrs[0] == 1e-6
    assert lrs[-1] <= max(lrs)
    assert all(lr > 0 for lr in lrs)


def test_weight_decay_groups() -> None:
    model = build_model(tiny_config(model="deit_tiny_distilled_patch16_224", svd_type="mix_head_fc_qk"))
    optimizer = make_optimizer(model, LowRankRecipe(weight_decay=0.05), lr=1.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {
        names[parameter]
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    expected = {
        name
        for name, parameter in model.named_parameters()
        if name.endswith(".weight") and "norm" not in name and parameter.ndim > 1
    }
    assert decayed == expected
    assert "blocks.0.attn.encoder_q.weight" in decayed
    assert not decayed & {"pos_embed", "cls_token", "dist_token", "blocks.0.norm1.weight", "head.bias"}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_optimizer_has_the_published_arguments() -> None:
    optimizer = make_optimizer(build_model(tiny_config()), LowRankRecipe(opt_betas="0.8,0.95"), lr=1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["betas"] == (0.8, 0.95)


@pytest.mark.parametrize("opt", ["sgd", "momentum", "lamb", "adafactor"])
def test_other_optimizers_of_timm(opt: str) -> None:
    model = build_model(tiny_config())
    optimizer = make_optimizer(model, Recipe(opt=opt), lr=0.1)
    before = model.head.weight.detach().clone()
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.head.weight)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"opt": "adamwhat"}, ["--opt adamwhat"]),
        ({"opt_betas": "0.9"}, ["--opt-betas 0.9", "0.9,0.999"]),
        ({"opt_betas": "0.9,1.5"}, ["--opt-betas 0.9,1.5"]),
        ({"distill": "soft"}, ["--distill soft", "--teacher"]),
        ({"teacher": "regnety_160"}, ["--teacher", "--distill"]),
        ({"labels": False}, ["--no-labels", "--teacher"]),
        ({"labels": False, "distill": "hard", "teacher": "x"}, ["--distill hard", "--no-labels"]),
        ({"distill_from": "a", "teacher": "b"}, ["--distill-from", "--teacher"]),
        ({"log_to": "tensorboard,mlflow"}, ["--log-to mlflow is no logger", "tensorboard and wandb"]),
        ({"log_to": "wandbb"}, ["--log-to wandbb", "did you mean wandb?"]),
        ({"log_to": " , "}, ["--log-to", "names no logger"]),
        ({"log_to": ""}, ["--log-to is empty"]),
        ({"opt": ""}, ["--opt is empty"]),
        ({"opt_betas": "1e400,nan"}, ["--opt-betas 1e400,nan"]),
        ({"opt_betas": "\N{SNOWMAN}"}, ["--opt-betas"]),
        ({"clip_grad": 0.0}, ["--clip-grad must be above 0"]),
        ({"opt_eps": 0.0}, ["--opt-eps must be above 0"]),
        ({"drop_path": 1.0}, ["--drop-path must be at least 0 and below 1, not 1.0"]),
        ({"model_ema_decay": 1.0}, ["--model-ema-decay must be", "below 1"]),
        ({"lr": math.inf}, ["--lr must be above 0 and at most 1e+09, not inf"]),
        ({"lr": 1e-320}, ["--lr 9.99989e-321 is too small to compute with"]),
        ({"weight_decay": -math.inf}, ["--weight-decay must be at least 0, not -inf"]),
        ({"epochs": 10**5000}, ["--epochs must be", "2147483647", "digits"]),
        ({"batch_size": 0}, ["--batch-size"]),
        ({"lr": math.nan}, ["--lr"]),
    ],
)
def test_mistakes_name_the_flag(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(VitcodError) as error:
        make_optimizer(build_model(tiny_config()), Recipe(**fields), lr=0.1)
    for word in words:
        assert word in str(error.value)


def test_teacher_source() -> None:
    alone = Recipe(distill_from="dense.safetensors")
    assert (alone.teacher_source, alone.uses_labels) == ("dense.safetensors", False)
    beside = Recipe(distill="hard", teacher="regnety_160")
    assert (beside.teacher_source, beside.uses_labels) == ("regnety_160", True)
    assert (Recipe().teacher_source, Recipe().uses_labels) == (None, True)
