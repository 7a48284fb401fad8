"""What of a block's output counts, and its error against that of the dense model's block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.fit import Scope
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.passes import BlockPass, block_passes
from vitcod_cli.model.read_rows import class_tokens_read, last_block_pass, read_by_head

PREFIX_SHARE = 0.3
"""Share of the prefix tokens in the loss: one row of 197 would hardly count otherwise, but the class
token is what the head reads."""

_BATCH = 32


@dataclass(frozen=True)
class OutputLoss:
    """Weighted squared error of a block's output, 1 being no better than the mean over images.

    Attributes:
        weights: float32 [N]; the share of each token in the error, divided by the variance over images
            of the target at tokens of its kind (prefix or patch).
    """

    weights: Tensor

    @classmethod
    def scaled_to(
        cls,
        target: Tensor,
        num_prefix_tokens: int,
        device: torch.device,
        *,
        class_tokens: int = 0,
        class_share: float = 0.0,
    ) -> OutputLoss:
        """The loss, on ``device``, for outputs like ``target`` [images, N, C] (all processes' images together).

        Args:
            class_tokens: how many of the first tokens are all that the head reads.
            class_share: what they get of the error beforehand; the rest is shared among all tokens as usual.
        """
        shift = distributed.broadcast(target[:1].to(device).mean(dim=0).clone())
        sums = torch.zeros(2, *shift.shape, dtype=torch.float64, device=device)
        for part in torch.split(target, _BATCH):  # of all at once there would be two copies
            centred = (part.to(device) - shift).double()
            sums += torch.stack([centred.sum(dim=0), centred.square().sum(dim=0)])
        count = distributed.all_reduce_sum(torch.tensor(float(len(target)), device=device).double())
        first, second = distributed.all_reduce_sum(sums) / count
        variance = (second - first.square()).clamp_min(0).mean(dim=-1)  # [N]

        num_tokens, prefix = len(variance), num_prefix_tokens
        # In the first blocks a prefix token is nearly the same for all images: against its own
        # variance its error would drown everything else.
        patches = variance[prefix:].mean()
        least = 0.1 * patches
        if 0 < prefix < num_tokens:
            weights = torch.empty_like(variance)
            weights[:prefix] = PREFIX_SHARE / prefix / torch.maximum(variance[:prefix].mean(), least)
            weights[prefix:] = (1 - PREFIX_SHARE) / (num_tokens - prefix) / patches
        else:
            weights = torch.full_like(variance, 1 / num_tokens) / variance.mean()
        if class_share:
            own = torch.maximum(variance[:class_tokens].mean(), least)
            weights *= 1 - class_share
            weights[:class_tokens] += class_share / class_tokens / own
        return cls(torch.nan_to_num(weights, posinf=1.0).float())

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over images of the weighted error of ``output`` [B, N, C]; a scalar."""
        error = (output.float() - target).square().mean(dim=-1)
        return (error * self.weights).sum(dim=-1).mean()


@dataclass(frozen=True)
class Objective:
    """What of the tokens behind each block of a student counts in its calibration.

    Attributes:
        blocks: how many there are.
        num_prefix_tokens: of the student.
        class_tokens: how many first tokens are all that its head reads; 0 if others count as well.
        read: those of the last block's tokens that count; None: all.
        depth: how what counts changes from block to block.
    """

    blocks: int
    num_prefix_tokens: int
    class_tokens: int
    read: slice | None
    depth: Depth

    @classmethod
    def of(cls, student: Transformer, scope: Scope, depth: Depth) -> Objective:
        """Maps are dumped of all rows of a low-rank model, so that where attention is fitted all tokens count."""
        whole = scope == "attention"
        return cls(
            blocks=len(student.blocks),
            num_prefix_tokens=student.num_prefix_tokens,
            class_tokens=0 if whole else class_tokens_read(student),
            read=None if whole else read_by_head(student),
            depth=depth,
        )

    @torch.no_grad()
    def passes(self, model: Transformer) -> list[BlockPass]:
        """The blocks of the student or its teacher; the last one computes what counts, and no more."""
        *passes, last = block_passes(model)
        return [*passes, last if self.read is None else last_block_pass(model, last)]

    def counted(self, index: int, tokens: Tensor) -> Tensor:
        """Those of ``tokens`` [images, N, C] behind block ``index`` that count."""
        return tokens if self.read is None or index + 1 < self.blocks else tokens[:, self.read]

    def loss(self, index: int, target: Tensor, device: torch.device) -> OutputLoss:
        """The loss of outputs of block ``index`` like ``target``: the :meth:`counted` tokens of some images."""
        prefix, share = self.num_prefix_tokens, self.depth.class_share(index, self.blocks, self.class_tokens)
        if self.read is not None and index + 1 == self.blocks:
            prefix, share = 0, 0.0
        return OutputLoss.scaled_to(target, prefix, device, class_tokens=self.class_tokens, class_share=share)
