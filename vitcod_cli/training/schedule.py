"""Optimizer and learning rate, as DeiT's ``main.py`` makes them through timm."""

from __future__ import annotations

import logging
from typing import Any

from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from vitcod_cli.errors import VitcodError
from vitcod_cli.training.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe, lr: float) -> Optimizer:
    """The optimizer of ``recipe`` over the parameters of ``model`` that need gradients.

    Weight decay spares biases, norms and all other vectors, and what ``model.no_weight_decay()``
    names (position embeddings, class and distillation tokens); the matrices of the head
    auto-encoders are decayed like any other.

    Raises:
        VitcodError: if timm doesn't know the optimizer or it refuses its arguments.
    """
    extra: dict[str, Any] = {} if recipe.betas is None else {"betas": recipe.betas}
    if recipe.opt.lower() in ("adam", "adamw"):
        extra["fused"] = True  # one kernel, a third of the time; other optimizers may not know the word
    try:
        return create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            eps=recipe.opt_eps,  # timm leaves out what an optimizer doesn't have
            **extra,
        )
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        raise VitcodError(f"--opt {recipe.opt} can't be used: {str(error).rstrip('.')}.") from error


class EpochSchedule:
    """The learning rate of each epoch, and how many of them are warm-up.

    DeiT's loop calls ``scheduler.step(epoch)`` behind epoch ``epoch``, so that epoch e > 0 runs
    with the schedule's value at e - 1, and the first two epochs both at its start. The loop runs
    ``--epochs`` epochs; the cool-down that timm adds behind them is never reached. Both are kept:
    they are what the published results were trained with.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe) -> None:
        self.warmup_epochs = recipe.warmup_epochs
        if recipe.epochs <= recipe.warmup_epochs:  # it would fill them all
            self.warmup_epochs = recipe.epochs // 4
        # timm warns that a cosine over a single epoch is flat; so it is.
        logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)
        self._optimizer = optimizer
        self._scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=max(recipe.epochs, 1),
            warmup_epochs=self.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            cooldown_epochs=recipe.cooldown_epochs,
            min_lr=recipe.min_lr,
            decay_epochs=recipe.decay_epochs,
            decay_rate=recipe.decay_rate,
        )

    def set_epoch(self, epoch: int) -> float:
        """Set the optimizer's learning rate for ``epoch`` (from 0) and return it."""
        self._scheduler.step(max(epoch - 1, 0))
        lr: float = self._optimizer.param_groups[0]["lr"]
        return lr
