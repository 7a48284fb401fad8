"""Fit a compressed model to its dense teacher block after block, on a few images without labels.

Each block is fed with what the already fitted blocks before it make of the images, and is fitted to
what the teacher's block makes of the teacher's own tokens: it learns to make up for the errors that
reach it, too. Nothing flows backwards through more than one block, so a step costs 1/L of a training
step, and the tokens of all images are kept in memory instead of being computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.calibration.objective import OutputLoss
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import attentions
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

HELD_OUT = 8
"""One image in so many is not fitted to: it judges whether a block has become better."""
FORWARD_BATCH = 32

Scope = Literal["attention", "block"]


@dataclass(frozen=True)
class BlockReport:
    """Error of one block on held-out images before and after, see :class:`OutputLoss`."""

    block: int
    before: float
    after: float
    seconds: float
    note: str = ""

    def metrics(self) -> dict[str, Any]:
        """For ``metrics.jsonl``."""
        return {
            "stage": "calibrate", "block": self.block, "error_before": self.before, "error": self.after,
            "seconds": self.seconds, **({"note": self.note} if self.note else {}),
        }  # fmt: skip


def checked_teacher(student: VisionTransformer, teacher: nn.Module | None, flag: str) -> VisionTransformer:
    """``teacher``, once it is known to have the blocks, tokens and width of ``student``.

    Raises:
        VitcodError: if it hasn't; ``flag`` is the option that named it.
    """

    def shape(model: Any) -> tuple[int, int, int] | None:
        if not isinstance(model, VisionTransformer):
            return None
        return len(model.blocks), model.patch_embed.num_patches + model.num_prefix_tokens, model.embed_dim

    wanted, given = shape(student), shape(teacher)
    if given is None or wanted is None:
        raise VitcodError(
            f"{flag} must be a Vision Transformer to calibrate block by block; use --calibrate-steps 0."
        )
    if wanted != given:
        raise VitcodError(
            f"{flag} has {given[0]} blocks, {given[1]} tokens and width {given[2]}, but "
            f"{model_config(student).model} has {wanted[0]}, {wanted[1]} and {wanted[2]}: block-wise calibration "
            "needs the same; use --calibrate-steps 0 with this teacher."
        )
    assert isinstance(teacher, VisionTransformer)
    return teacher


def calibrate(
    student: VisionTransformer,
    teacher: VisionTransformer,
    images: CalibrationImages,
    settings: CalibrationSettings,
    *,
    scope: Scope,
    runtime: Runtime,
    reporter: Reporter,
    on_block: Callable[[BlockReport], None] = lambda report: None,
) -> list[BlockReport]:
    """Fit ``student``'s blocks in place, first to last.

    Args:
        student: compressed (auto-encoders, mask), on the runtime's device.
        teacher: the dense (or low-rank) model of the same shape, on the same device.
        images: calibration images; every process has its share of them.
        scope: what is fitted: Q, K and the auto-encoders, or everything in the block.
        on_block: told of every block when it is done.

    Returns:
        One report a block. A block that does not get better on held-out images, or diverges, keeps
        its best state, with a warning when it diverged.
    """
    if min(distributed.gather_objects(len(images))) < 2:
        raise VitcodError("--calibrate-images must give every process at least 2 images.")
    student.eval()
    teacher.eval()
    walk = BlockWalk(student, teacher, images, runtime)
    reports: list[BlockReport] = []
    total = len(student.blocks) * settings.calibrate_steps
    with reporter.progress("calibrate", total, unit="steps") as progress:

        def on_step(error: float) -> None:
            progress.advance(1, block=f"{len(reports) + 1}/{len(student.blocks)}", error=error)

        for index, (tokens, target) in enumerate(walk):
            block, loss = student.blocks[index], OutputLoss.scaled_to(target, student.num_prefix_tokens)
            fit = BlockFit(
                block, fitted_parameters(block, scope), loss, tokens, target, images.crops, settings, runtime
            )
            report = fit.run(index, on_step)
            if report.note:
                reporter.warn(f"Block {index + 1}: {report.note}")
            reports.append(report)
            on_block(report)
    return reports


class BlockWalk:
    """Yields, block by block, the student's tokens and the teacher's outputs [images, N, C]."""

    def __init__(
        self, student: VisionTransformer, teacher: VisionTransformer, images: CalibrationImages, runtime: Runtime
    ) -> None:
        self.student, self.teacher, self.images, self.runtime = student, teacher, images, runtime

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        tokens, teacher_tokens = self._embed(self.student), self._embed(self.teacher)
        for student_block, teacher_block in zip(self.student.blocks, self.teacher.blocks, strict=True):
            teacher_tokens = apply_block(teacher_block, teacher_tokens, self.runtime)
            yield tokens, teacher_tokens
            tokens = apply_block(student_block, tokens, self.runtime)

    @torch.no_grad()
    def _embed(self, model: VisionTransformer) -> Tensor:
        parts = []
        for batch in self.images.batches(FORWARD_BATCH):
            with self.runtime.autocast():
                x = model.norm_pre(model._pos_embed(model.patch_embed(batch)))
            parts.append(x.float())
        return torch.cat(parts)


@torch.no_grad()
def apply_block(block: nn.Module, tokens: Tensor, runtime: Runtime) -> Tensor:
    """``block`` on all ``tokens`` [images, N, C], in batches; float32."""
    parts = []
    for part in torch.split(tokens, FORWARD_BATCH):
        with runtime.autocast():
            parts.append(block(part).float())
    return torch.cat(parts)


@dataclass
class BlockFit:
    """AdamW with a short warm-up and a cosine on one block."""

    block: nn.Module
    parameters: list[nn.Parameter]
    loss: OutputLoss
    tokens: Tensor
    target: Tensor
    crops: int
    settings: CalibrationSettings
    runtime: Runtime

    def __post_init__(self) -> None:
        # Pictures are held out with all their crops, and judged by the first, the evaluation crop.
        places = torch.arange(len(self.tokens), device=self.tokens.device)
        images = len(self.tokens) // self.crops
        held = places % images % HELD_OUT == 1
        self.fitted, self.held = places[~held], places[held & (places < images)]

    def run(self, index: int, on_step: Callable[[float], None]) -> BlockReport:
        """Fit, and go back to where the block was if that was better."""
        import time

        started = time.perf_counter()
        best = [parameter.detach().clone() for parameter in self.parameters]
        before = self.held_out_error()
        note = self._descend(index, on_step)
        after = self.held_out_error()
        if not after <= before:  # also when NaN
            with torch.no_grad():
                for parameter, value in zip(self.parameters, best, strict=True):
                    parameter.copy_(value)
            after = before
        return BlockReport(index, before, after, time.perf_counter() - started, note)

    @torch.no_grad()
    def held_out_error(self) -> float:
        """Mean error over the held-out images of all processes."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.tokens.device)
        for part in torch.split(self.held, FORWARD_BATCH):
            with self.runtime.autocast():
                output = self.block(self.tokens[part])
            sums += torch.stack([self.loss(output, self.target[part]) * len(part), sums.new_tensor(len(part))])
        total, count = distributed.all_reduce_sum(sums).tolist()
        return float(total / count)

    def _descend(self, index: int, on_step: Callable[[float], None]) -> str:
        """The steps; returns what went wrong, if anything did."""
        steps = self.settings.calibrate_steps
        optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.0)
        generator = torch.Generator().manual_seed(
            self.runtime.settings.seed * 1_000_003 + index * 1009 + distributed.rank()
        )
        batch = max(1, self.settings.calibrate_batch_size // distributed.world_size())
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.calibrate_lr * learning_rate_factor(step, steps)
            chosen = self.fitted[torch.randint(len(self.fitted), (batch,), generator=generator)]
            optimizer.zero_grad()
            with self.runtime.autocast():
                output = self.block(self.tokens[chosen])
            loss = self.loss(output, self.target[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            norm = average_gradients(self.parameters)
            if not math.isfinite(norm):
                return f"diverged at calibration step {step + 1} of {steps}; it keeps its best state."
            optimizer.step()
            on_step(float(loss.detach()))
        return ""


def fitted_parameters(block: nn.Module, scope: Scope) -> list[nn.Parameter]:
    """All parameters of ``block``, or those of Q, K and their auto-encoders (V's rows come along)."""
    if scope == "block":
        return list(block.parameters())
    names = ("qkv.", "q_norm.", "k_norm.", "encoder_", "decoder_")
    return [p for layer in attentions(block) for name, p in layer.named_parameters() if name.startswith(names)]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine to zero."""
    warmup = min(1.0, (step + 1) / max(1, steps // 10))
    return warmup * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def average_gradients(parameters: list[nn.Parameter], max_norm: float = 1.0) -> float:
    """Average the gradients over all processes and clip them; returns their norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if distributed.is_distributed():
        flat = distributed.all_reduce_sum(torch.cat([g.flatten() for g in gradients])) / distributed.world_size()
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))
