"""The fit of one block to what the teacher's block makes of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli.calibration.fit import Fit
from vitcod_cli.calibration.objective import OutputLoss
from vitcod_cli.model.passes import BlockPass

TEACHER_SHARE = 0.5
"""Share of the tokens that a step takes from the teacher instead of the student at first; 0 behind the last step.

A block that sees some of its tokens as they should be learns less of the errors of these few images by heart, as
QDrop does for quantised models (Wei et al., ICLR 2022). What it gives: docs/research.md.
"""


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
class BlockFit(Fit):
    """A block of the student, fitted in place.

    Attributes:
        tokens: [images, N, C], what enters the block; ``crops`` views of each image, all images in
            their first view before all in their second.
        teacher_tokens: [images, N, C], what enters the teacher's block; both may be on another device than the
            block.
        goal: what the block should make of them: what the teacher's block makes of the teacher's tokens.
        ahead: what the teacher's next blocks should make of the output, one after the other.
    """

    tokens: Tensor
    teacher_tokens: Tensor
    goal: Goal
    ahead: Sequence[Goal]

    @property
    def block(self) -> int:
        """From 0."""
        return self.index

    @property
    def subject(self) -> str:
        """``block 3``, from 1."""
        return f"block {self.index + 1}"

    def step_loss(self, sample: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The block's error and those ahead together, and the first of them."""
        return self._errors(self._mixed(sample, TEACHER_SHARE * (1 - step / self.steps), generator), sample)

    def errors(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The same on the student's own tokens."""
        return self._errors(self.tokens[sample], sample)

    def _errors(self, tokens: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        output, error = self.goal.error(tokens.to(self.runtime.device), sample)
        loss = error
        for goal in self.ahead:
            output, further = goal.error(output, sample)
            loss = loss + further
        return loss, error

    def _mixed(self, sample: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """The student's tokens of these images, of which about ``share`` are the teacher's."""
        tokens = self.tokens[sample]
        swapped = torch.rand(tokens.shape[:2], generator=generator) < share
        return torch.where(swapped[..., None].to(tokens.device), self.teacher_tokens[sample], tokens)
