"""Fit a compressed model to its dense teacher block after block, on a few images without labels.

Each block is fed with what the already fitted blocks before it make of the images, and is fitted to
what the teacher's block makes of the teacher's own tokens: it learns to make up for the errors that
reach it, too. Nothing flows backwards through more than one block, so a step costs 1/L of a training
step, and the tokens of all images are kept in memory instead of being computed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.calibration.objective import OutputLoss
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import model_config
from vitcod_cli.model.layers import attentions
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

HELD_OUT = 8
"""One image in so many is not fitted to: it judges whether a block has become better."""
FORWARD_BATCH = 32
"""Images of a forward pass without gradients."""

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

    expected, actual = shape(student), shape(teacher)
    if expected is None or actual is None:
        raise VitcodError(
            f"{flag} must be a Vision Transformer to calibrate block by block; use --calibrate-steps 0."
        )
    if expected != actual:
        raise VitcodError(
            f"{flag} has {actual[0]} blocks, {actual[1]} tokens and width {actual[2]}, but "
            f"{model_config(student).model} has {expected[0]}, {expected[1]} and {expected[2]}: block-wise "
            "calibration needs the same; use --calibrate-steps 0 with this teacher."
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
    """Fit ``student``'s blocks in place, first to last; the teacher can be released afterwards.

    Args:
        student: compressed (auto-encoders, mask), on the runtime's device.
        teacher: the dense (or low-rank) model of the same shape, on the same device; see
            :func:`checked_teacher`.
        images: calibration images, normalised as ``student`` expects; every process has its share.
        settings: of which ``calibrate_steps`` is at least 1.
        scope: what is fitted: Q, K and the auto-encoders, or everything in the block.
        on_block: called with the report of every block when it is done.

    Returns:
        One report a block. A block that does not get better on held-out images, or diverges, keeps
        its best state, with a warning when it diverged.

    Raises:
        VitcodError: if a process has fewer than 2 images.
    """
    if min(distributed.gather_objects(len(images))) < 2:
        raise VitcodError("--calibrate-images must give every process at least 2 images.")
    student.eval()
    teacher.eval()
    reports: list[BlockReport] = []
    total = len(student.blocks) * settings.calibrate_steps
    with reporter.progress("calibrate", total, unit="steps") as progress:

        def on_step(error: float) -> None:
            progress.advance(1, block=f"{len(reports) + 1}/{len(student.blocks)}", error=error)

        for index, (tokens, target) in enumerate(walk_blocks(student, teacher, images, runtime)):
            block = student.blocks[index]
            fit = BlockFit(
                block=block,
                parameters=fitted_parameters(block, scope),
                loss=OutputLoss.scaled_to(target, student.num_prefix_tokens),
                tokens=tokens,
                target=target,
                crops=images.crops,
                settings=settings,
                runtime=runtime,
            )
            report = fit.run(index, on_step)
            if report.note:
                reporter.warn(f"Block {index + 1}: {report.note}")
            reports.append(report)
            on_block(report)
    return reports


def walk_blocks(
    student: VisionTransformer, teacher: VisionTransformer, images: CalibrationImages, runtime: Runtime
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each block: the student's tokens that enter it, and the teacher's that leave it, [images, N, C] each.

    A block is applied to the student's tokens when the next pair is asked for, so that its fit counts.
    """
    renormalise = Renormalise.for_model(teacher, preprocess_of(student)).to(runtime.device)
    tokens = embed(student, images.batches(FORWARD_BATCH), runtime)
    teacher_tokens = embed(teacher, map(renormalise, images.batches(FORWARD_BATCH)), runtime)
    for student_block, teacher_block in zip(student.blocks, teacher.blocks, strict=True):
        teacher_tokens = apply_block(teacher_block, teacher_tokens, runtime)
        yield tokens, teacher_tokens
        tokens = apply_block(student_block, tokens, runtime)


@torch.no_grad()
def embed(model: VisionTransformer, batches: Iterable[Tensor], runtime: Runtime) -> Tensor:
    """The tokens [images, N, C] that enter the first block; float32."""
    parts = []
    for batch in batches:
        with runtime.autocast():
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


@dataclass(kw_only=True)
class BlockFit:
    """AdamW with a short warm-up and a cosine on one block.

    Attributes:
        block: the student's, which is fitted in place.
        parameters: those of them that are fitted.
        tokens: [images, N, C], what enters the block; ``crops`` views of each image, all images in
            their first view before all in their second.
        target: [images, N, C], what the teacher's block makes of its own tokens.
    """

    block: nn.Module
    parameters: list[nn.Parameter]
    loss: OutputLoss
    tokens: Tensor
    target: Tensor
    crops: int
    settings: CalibrationSettings
    runtime: Runtime

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
        """
        started = time.perf_counter()
        first = [parameter.detach().clone() for parameter in self.parameters]
        before = self.held_out_error()
        note = self._train(index, on_step)
        after = self.held_out_error()
        if not after <= before:  # also when NaN
            with torch.no_grad():
                for parameter, value in zip(self.parameters, first, strict=True):
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

    def _train(self, index: int, on_step: Callable[[float], None]) -> str:
        """All steps; returns what went wrong, if anything did."""
        steps = self.settings.calibrate_steps
        optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.0)
        generator = torch.Generator().manual_seed(
            self.runtime.settings.seed * 1_000_003 + index * 1009 + distributed.rank()
        )
        batch = max(1, self.settings.calibrate_batch_size // distributed.world_size())
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.calibrate_lr * learning_rate_factor(step, steps)
            sample = self.fitted[torch.randint(len(self.fitted), (batch,), generator=generator)]
            optimizer.zero_grad()
            with self.runtime.autocast():
                output = self.block(self.tokens[sample])
            loss = self.loss(output, self.target[sample])
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
    """The share of the peak learning rate for ``step`` (from 0): a linear warm-up times a cosine.

    The warm-up takes a tenth of the ``steps``; the cosine falls from 1 at the first step towards 0
    behind the last.
    """
    warmup = min(1.0, (step + 1) / max(1, steps // 10))
    return warmup * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def average_gradients(parameters: list[nn.Parameter], max_norm: float = 1.0) -> float:
    """Average the gradients over all processes, clip their norm to ``max_norm``; returns the norm before.

    One sum for all of them: DDP would have to wrap every block anew.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if distributed.is_distributed():
        total = distributed.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(total / distributed.world_size(), [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    return float(nn.utils.clip_grad_norm_(parameters, max_norm))
