"""What every fit of a calibration has in common: its steps, and that it never makes the model worse."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.layers import attentions
from vitcod_cli.runtime import Runtime
from vitcod_cli.signals import StopRequest

HELD_OUT = 8
"""One image in so many is not fitted to: it judges whether a fit has made the model better."""
FORWARD_BATCH = 32
"""Images of a forward pass without gradients."""
_RISEN = 0.01
"""An error that a fit in vain may well end at; 1 is no better than the mean over images."""

Scope = Literal["attention", "block"]
"""What of a block is fitted: Q, K and their auto-encoders, or everything."""


@dataclass(frozen=True)
class FitReport:
    """Error on held-out images before and after a fit, see :class:`~vitcod_cli.calibration.objective.OutputLoss`.

    Attributes:
        block: index from 0 of the block that was fitted; None: the first ones as one.
        improved: whether the fit was kept: what it was fitted for has become better.
        seconds: that the fit took.
        note: what went wrong, if anything did.
    """

    block: int | None
    before: float
    after: float
    improved: bool
    seconds: float
    note: str = ""

    def metrics(self) -> dict[str, Any]:
        """For ``metrics.jsonl``."""
        what = {"stage": "calibrate_joint"} if self.block is None else {"stage": "calibrate", "block": self.block}
        return {
            **what, "error_before": self.before, "error": self.after, "seconds": self.seconds,
            **({"note": self.note} if self.note else {}),
        }  # fmt: skip


@dataclass(kw_only=True)
class Fit(ABC):
    """AdamW with a short warm-up and a cosine.

    Attributes:
        index: of the block, from 0; of the fit of several, how many blocks there are. With the run's seed and the
            process it decides which images each step sees.
        parameters: what is fitted, in place.
        peak: the learning rate behind the warm-up.
        views: of the images of this process; ``crops`` of each image, all images in their first before all in
            their second.
        steps: how many; each of ``settings.calibrate_batch_size`` images, over all processes.
        stop: asked behind every step; the processes agree.
    """

    index: int
    parameters: list[nn.Parameter]
    peak: float
    views: int
    crops: int
    steps: int
    settings: CalibrationSettings
    runtime: Runtime
    stop: StopRequest

    def __post_init__(self) -> None:
        # Images are held out with all their crops, and judged by the first, the evaluation crop.
        indices = torch.arange(self.views)
        images = self.views // self.crops
        held = indices % images % HELD_OUT == 1
        self.fitted, self.held = indices[~held], indices[held & (indices < images)]

    @abstractmethod
    def step_loss(self, sample: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The loss of the images ``sample`` in ``step``, and the error that is shown of it; scalars."""

    @abstractmethod
    def errors(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of the images ``sample`` as they are, which decides, and the error that is shown; scalars."""

    @property
    @abstractmethod
    def block(self) -> int | None:
        """For the report."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is fitted, for sentences: ``block 3``."""

    def run(self, on_step: Callable[[float], None]) -> FitReport:
        """Fit, and go back to where the parameters were if that was better.

        Args:
            on_step: called with the error of every step.

        Raises:
            VitcodError: if the error is not finite before the fit.
            Interrupted: after a signal; the parameters are half fitted.
        """
        started = time.perf_counter()
        first = [parameter.detach().clone() for parameter in self.parameters]
        loss_before, before = self.held_out_errors()
        if not math.isfinite(before):  # of what is fitted; blocks behind it are named when it is their turn
            raise VitcodError(_not_finite(self.subject, self.runtime))
        note = self._train(on_step)
        self._zero_grad()  # else a training would begin with these gradients
        loss, after = self.held_out_errors()
        if not note and loss > max(2 * loss_before, _RISEN):
            note = f"diverged to an error of {after:.3g}, from {before:.3g}; it keeps its best state."
        if not loss <= loss_before:  # also when NaN
            with torch.no_grad():
                for parameter, value in zip(self.parameters, first, strict=True):
                    parameter.copy_(value)
            after = before
        return FitReport(self.block, before, after, loss < loss_before, time.perf_counter() - started, note)

    @torch.no_grad()
    def held_out_errors(self) -> tuple[float, float]:
        """Mean :meth:`errors` over the held-out images of all processes."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.runtime.device)
        with between_steps(self.stop):
            for part in torch.split(self.held, FORWARD_BATCH) if len(self.held) else ():
                with self.runtime.autocast():
                    loss, error = self.errors(part)
                sums += torch.stack([loss * len(part), error * len(part), sums.new_tensor(len(part))])
        loss_sum, error_sum, count = distributed.all_reduce_sum(sums).tolist()
        return float(loss_sum / count), float(error_sum / count)

    def _train(self, on_step: Callable[[float], None]) -> str:
        """All steps; returns what went wrong, if anything did."""
        optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.0)
        generator = torch.Generator().manual_seed(
            self.runtime.settings.seed * 1_000_003 + self.index * 1009 + distributed.rank()
        )
        batch, weight = self._share()
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.peak * learning_rate_factor(step, self.steps)
            sample = self.fitted[torch.randint(len(self.fitted), (batch,), generator=generator)]
            self._zero_grad()
            with self.runtime.autocast():
                loss, error = self.step_loss(sample, step, generator)
            # Of nothing else gradients are computed, such as the teacher's weights.
            (loss * weight).backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
            signals = average_gradients(self.parameters, [self.stop.interrupted, self.stop.terminated])
            if any(signals):
                self.stop.learn(interrupted=signals[0], terminated=signals[1])
                self.stop.stop()
            norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
            if not math.isfinite(norm):
                return f"diverged at calibration step {step + 1} of {self.steps}; it keeps its best state."
            optimizer.step()
            on_step(float(error.detach()))
        return ""

    def _zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _share(self) -> tuple[int, float]:
        """Images of a step in this process, and the weight of their mean error.

        Every image counts alike, though the processes may have different numbers of them.
        """
        processes, mine = distributed.world_size(), len(self.fitted)
        total = sum(distributed.gather_objects(mine))
        batch = max(1, self.settings.calibrate_batch_size // processes)
        return min(batch, mine), mine * processes / total


def between_steps(stop: StopRequest) -> AbstractContextManager[None]:
    """Where a signal may end the work at once, outside the steps: several processes must stop together instead."""
    return nullcontext() if distributed.is_distributed() else stop.at_once()


def fitted_parameters(block: nn.Module, scope: Scope) -> list[nn.Parameter]:
    """All parameters of ``block``, or those of Q, K and their auto-encoders (V's rows come along)."""
    if scope == "block":
        return list(block.parameters())
    projections = ("qkv.", "q_proj.", "k_proj.", "v_proj.", "q_bias", "v_bias")
    names = (*projections, "q_norm.", "k_norm.", "encoder_", "decoder_")
    return [p for layer in attentions(block) for name, p in layer.named_parameters() if name.startswith(names)]


def learning_rate_factor(step: int, steps: int) -> float:
    """The share of the peak learning rate for ``step`` (from 0): a linear warm-up times a cosine.

    The warm-up takes a tenth of the ``steps``; the cosine falls from 1 at the first step towards 0
    behind the last.
    """
    warmup = min(1.0, (step + 1) / max(1, steps // 10))
    return warmup * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def average_gradients(parameters: list[nn.Parameter], flags: Sequence[bool]) -> list[bool]:
    """Average the gradients over all processes, in place; returns which ``flags`` are set on any of them.

    One sum for all of it: DDP would have to wrap every block anew.
    """
    if not distributed.is_distributed():
        return list(flags)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    mine = torch.cat([*(gradient.flatten() for gradient in gradients), parameters[0].new_tensor(flags)])
    total = distributed.all_reduce_sum(mine)
    *parts, counts = torch.split(total, [*(gradient.numel() for gradient in gradients), len(flags)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_((part / distributed.world_size()).view_as(gradient))
    return [count > 0 for count in counts.tolist()]


def _not_finite(subject: str, runtime: Runtime) -> str:
    if runtime.dtype == torch.float16:
        way_on = "float16 overflows, most likely: use --precision bfloat16 or float32"
    else:
        way_on = "the weights of the model or its teacher are broken: take another checkpoint"
    return f"The output of {subject} is not finite before it is calibrated; {way_on}."
