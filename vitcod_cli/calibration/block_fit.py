"""The fit of one block to what the teacher's block makes of the images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.calibration.objective import OutputLoss
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.layers import attentions
from vitcod_cli.model.passes import BlockPass
from vitcod_cli.runtime import Runtime
from vitcod_cli.signals import StopRequest

HELD_OUT = 8
"""One image in so many is not fitted to: it judges whether a block has become better."""
FORWARD_BATCH = 32
"""Images of a forward pass without gradients."""
TEACHER_SHARE = 0.5
"""Share of the tokens that a step takes from the teacher instead of the student at first; 0 behind the last step.

A block that sees some of its tokens as they should be learns less of the errors of these few images by heart, as
QDrop does for quantised models (Wei et al., ICLR 2022). What it gives: docs/research.md.
"""
_RISEN = 0.01
"""An error that a block which was fitted in vain may well reach; 1 is no better than the mean over images."""

Scope = Literal["attention", "block"]
"""What of a block is fitted: Q, K and their auto-encoders, or everything."""


@dataclass(frozen=True)
class BlockReport:
    """Error of one block on held-out images before and after its fit, see :class:`OutputLoss`.

    Attributes:
        block: its index, from 0.
        seconds: that the fit took.
        note: what went wrong, if anything did.
    """

    block: int
    before: float
    after: float
    seconds: float
    note: str = ""

    @property
    def improved(self) -> bool:
        """Whether the fit was kept."""
        return self.after < self.before

    def metrics(self) -> dict[str, Any]:
        """For ``metrics.jsonl``."""
        return {
            "stage": "calibrate", "block": self.block, "error_before": self.before, "error": self.after,
            "seconds": self.seconds, **({"note": self.note} if self.note else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """What a block should make of tokens.

    Attributes:
        block_pass: the block, or what it computes of some tokens.
        target: [images, N, C], what it should make of each image; may be on another device than the block.
        loss: of outputs against it.
    """

    block_pass: BlockPass
    target: Tensor
    loss: OutputLoss

    def error(self, tokens: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """What the block makes of ``tokens`` [B, N, C] of the images ``sample``, and its error, a scalar."""
        output = self.block_pass(tokens)
        return output, self.loss(output, self.target[sample].to(output.device))


@dataclass(kw_only=True)
class BlockFit:
    """AdamW with a short warm-up and a cosine on one block.

    Attributes:
        block: the student's, which is fitted in place.
        parameters: those of them that are fitted.
        tokens: [images, N, C], what enters the block; ``crops`` views of each image, all images in
            their first view before all in their second.
        teacher_tokens: [images, N, C], what enters the teacher's block; both may be on another device than the
            block.
        goal: what the block should make of them: what the teacher's block makes of the teacher's tokens.
        ahead: what the teacher's next blocks should make of the output, one after the other.
        peak: the learning rate behind the warm-up.
        stop: asked behind every step; the processes agree.
    """

    block: nn.Module
    parameters: list[nn.Parameter]
    tokens: Tensor
    teacher_tokens: Tensor
    goal: Goal
    ahead: Sequence[Goal]
    peak: float
    crops: int
    settings: CalibrationSettings
    runtime: Runtime
    stop: StopRequest

    def __post_init__(self) -> None:
        # Images are held out with all their crops, and judged by the first, the evaluation crop.
        indices = torch.arange(len(self.tokens), device=self.tokens.device)
        images = len(self.tokens) // self.crops
        held = indices % images % HELD_OUT == 1
        self.fitted, self.held = indices[~held], indices[held & (indices < images)]

    def run(self, index: int, on_step: Callable[[float], None]) -> BlockReport:
        """Fit, and go back to where the block was if that was better.

        Args:
            index: of the block, from 0; decides which images each step sees.
            on_step: called with the error of every step.

        Raises:
            VitcodError: if the block's error is not finite before it is fitted.
            Interrupted: after a signal; the block is half fitted.
        """
        started = time.perf_counter()
        first = [parameter.detach().clone() for parameter in self.parameters]
        before = self.held_out_error()
        if not math.isfinite(before):
            raise VitcodError(_not_finite(index, self.runtime))
        note = self._train(index, on_step)
        self.block.zero_grad()  # else a training would begin with these gradients
        after = self.held_out_error()
        if not note and after > max(2 * before, _RISEN):
            note = f"diverged to an error of {after:.3g}, from {before:.3g}; it keeps its best state."
        if not after <= before:  # also when NaN
            with torch.no_grad():
                for parameter, value in zip(self.parameters, first, strict=True):
                    parameter.copy_(value)
            after = before
        return BlockReport(index, before, after, time.perf_counter() - started, note)

    @torch.no_grad()
    def held_out_error(self) -> float:
        """Mean error over the held-out images of all processes."""
        device = self.runtime.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        with between_steps(self.stop):
            for part in torch.split(self.held, FORWARD_BATCH) if len(self.held) else ():
                with self.runtime.autocast():
                    _, error = self.goal.error(self.tokens[part].to(device), part)
                sums += torch.stack([error * len(part), sums.new_tensor(len(part))])
        total, count = distributed.all_reduce_sum(sums).tolist()
        return float(total / count)

    def _train(self, index: int, on_step: Callable[[float], None]) -> str:
        """All steps; returns what went wrong, if anything did."""
        steps = self.settings.calibrate_steps
        optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.0)
        generator = torch.Generator().manual_seed(
            self.runtime.settings.seed * 1_000_003 + index * 1009 + distributed.rank()
        )
        batch, weight = self._share()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.peak * learning_rate_factor(step, steps)
            sample = self.fitted[torch.randint(len(self.fitted), (batch,), generator=generator)]
            self.block.zero_grad()
            tokens = self._mixed(sample, TEACHER_SHARE * (1 - step / steps), generator)
            with self.runtime.autocast():
                output, error = self.goal.error(tokens.to(self.runtime.device), sample)
                loss = error
                for goal in self.ahead:
                    output, further = goal.error(output, sample)
                    loss = loss + further
            # Of nothing else gradients are computed, such as the teacher's weights.
            (loss * weight).backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
            signals = average_gradients(self.parameters, [self.stop.interrupted, self.stop.terminated])
            if any(signals):
                self.stop.learn(interrupted=signals[0], terminated=signals[1])
                self.stop.stop()
            norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
            if not math.isfinite(norm):
                return f"diverged at calibration step {step + 1} of {steps}; it keeps its best state."
            optimizer.step()
            on_step(float(error.detach()))
        return ""

    def _mixed(self, sample: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """The student's tokens of these images, of which about ``share`` are the teacher's."""
        tokens = self.tokens[sample]
        swapped = torch.rand(tokens.shape[:2], generator=generator) < share
        return torch.where(swapped[..., None].to(tokens.device), self.teacher_tokens[sample], tokens)

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


def _not_finite(index: int, runtime: Runtime) -> str:
    if runtime.dtype == torch.float16:
        way_on = "float16 overflows, most likely: use --precision bfloat16 or float32"
    else:
        way_on = "the weights of the model or its teacher are broken: take another checkpoint"
    return f"The output of block {index + 1} is not finite before it is calibrated; {way_on}."
