"""What is tried on something tiny before a run's folder is touched."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.training.preflight import check_recipe
from vitcod_cli.training.recipe import Recipe


def check(augmentation: dict[str, Any] | None = None, **recipe: Any) -> None:
    check_recipe(Recipe(**recipe), AugmentationSettings(**augmentation or {}))


POLICIES = "rand rand-m9-mstd0.5-inc1 rand-m7-n3-p0.5-mmax9-tweights augmix augmix-m5-w4-d2-b1 original-mstd0.5 "
POLICIES += "originalr v0 v0r-mstd1 3a none"


@pytest.mark.parametrize("aa", POLICIES.split())
def test_policies_of_timm_pass(aa: str) -> None:
    check({"aa": aa})


@pytest.mark.parametrize(
    ("aa", "message"),
    [
        ("foo-bar", "'foo' is no policy"),
        ("random-m9", "'random' is no policy of timm's; did you mean rand?"),
        ("rand-", "'' means nothing to rand"),
        ("rand-m9-foo", "'foo' means nothing to rand"),  # timm skips it without a word
        ("rand-m9-tfoo", "'tfoo' means nothing"),
        ("rand-m", "'m' means nothing"),
        ("rand-m9-inc1x", "'inc1x' means nothing"),
        ("rand-m-9", "'m' means nothing"),
        ("rand-m1.5", "rand-m1.5"),
        ("rand-n1000000000", "n1000000000 is too large"),
        ("rand-m9-w3", "'w3' means nothing to rand"),
        ("augmix-w0", "augmix-w0"),
        ("augmix-a0", "augmix-a0"),
        ("original-m9", "'m9' means nothing to original"),
        ("RAND-m9", "did you mean rand"),
        ("rand-m\N{DEVANAGARI DIGIT NINE}", "means nothing"),
        (" ", "' ' is no policy"),
        ("\N{SNOWMAN}", "is no policy"),
    ],
)
def test_a_policy_that_means_nothing(aa: str, message: str) -> None:
    with pytest.raises(VitcodError, match=re.escape(message)) as error:
        check({"aa": aa})
    assert "--aa" in str(error.value)


@pytest.mark.filterwarnings("ignore:It is highly recommended")  # kron would like another package
@pytest.mark.parametrize("opt", ["AdamW", "sgd", "momentum", "lamb", "lion", "kron", "lookahead_adam"])
def test_optimizers_of_timm_pass(opt: str) -> None:
    check(opt=opt)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"opt": "adamv"}, "--opt adamv is no optimizer of timm's; did you mean adam or"),
        ({"opt": "xyzzy"}, "take one of timm's, such as adamw"),
        ({"opt": "lookahead_adamv"}, "or adamw"),
        ({"opt": "foo_adamw"}, "--opt foo_adamw"),
        ({"opt": "lookahead_"}, "--opt lookahead_ is no optimizer"),
        ({"opt": "adahessian"}, "--opt adahessian does not work in this training"),
        ({"opt": "fusedadam"}, "--opt fusedadam"),
        ({"opt": "lion", "opt_eps": 1e-6}, "--opt-eps means nothing to --opt lion"),
        ({"opt": "sgd", "opt_betas": "0.9,0.99"}, "--opt-betas means nothing to --opt sgd"),
        ({"momentum": 0.8}, "--momentum means nothing to --opt adamw"),
        ({"opt": "sgd", "momentum": 0.0}, "--opt sgd can't be used: Nesterov momentum"),
        ({"sched": "step", "decay_rate": 1e9, "decay_epochs": 0.1, "epochs": 1000}, "--decay-rate 1e+09"),
    ],
)
def test_what_does_not_work_together(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(VitcodError, match=re.escape(message)):
        check(**recipe)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(VitcodError, match=rf"--log-to {name} needs its package; .*vitcod\[{name}\]"):
        check(log_to=name)


def test_what_is_turned_off_is_not_checked() -> None:
    check({"aa": "foo", "no_aug": True})
    check(opt="adamv", epochs=0)


def test_checks_draw_nothing() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed() -> None:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    seed()
    expected = draw()
    seed()
    check()
    assert draw() == expected
