"""Accuracy and loss on a labelled data set, every image counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.evaluation.passes import evaluating, nothing_to_evaluate, outputs_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of a model on a data set.

    Attributes:
        acc1, acc5: percent of images whose label is the first, among the first five (or all, with
            fewer classes) choices.
        loss: mean cross-entropy, in nats.
        images: how many were counted.
    """

    acc1: float
    acc5: float
    loss: float
    images: int

    def line(self) -> str:
        """``* Acc@1 81.576 Acc@5 95.214 loss 0.854``, as the published code prints it."""
        return f"* Acc@1 {self.acc1:.3f} Acc@5 {self.acc5:.3f} loss {self.loss:.3f}"

    @property
    def rank(self) -> tuple[float, ...]:
        """The larger the better: Acc@1, then the loss."""
        return self.acc1, -self.loss

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``acc1``, ``acc5``, ``loss``, ``images``."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    description: str = "eval",
) -> Evaluation:
    """Run ``model`` over ``loader`` and count; see :func:`evaluate_all`."""
    return evaluate_all([model], loader, runtime, reporter, description)[0]


def evaluate_all(
    models: Sequence[nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    description: str = "eval",
) -> list[Evaluation]:
    """Run every model over ``loader``, which is read once, and count.

    Each process counts its own images; the sums are added up at the end, so processes may have
    different numbers of batches, or none. The models' training mode is restored.

    Args:
        models: on the runtime's device; images as all of them expect.
        loader: (images [B, C, H, W] normalised, targets int64 [B]) of this process.

    Raises:
        VitcodError: if no process has an image that can be read.
    """
    # hits at 1 and 5, sum of losses, images. float64 is exact for counts up to 2^53.
    device = runtime.device if runtime.device.type == "cuda" else torch.device("cpu")
    sums = torch.zeros(len(models), 4, dtype=torch.float64, device=device)
    with evaluating(models):
        for logits, targets in outputs_of(models, loader, runtime, reporter, description):
            sums += torch.stack([_count(own, targets.to(own.device)) for own in logits]).to(device)
    sums = distributed.all_reduce_sum(sums)
    if not sums[0, 3]:
        raise nothing_to_evaluate()
    return [
        Evaluation(100 * hits1 / images, 100 * hits5 / images, loss / images, int(images))
        for hits1, hits5, loss, images in sums.tolist()
    ]


def choices(logits: Tensor) -> Tensor:
    """The first five choices, or all with fewer classes, best first: int64 [B, 5] of logits [B, classes]."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def _count(logits: Tensor, targets: Tensor) -> Tensor:
    """Hits at 1, hits at 5, summed loss and number of images of a batch, float64 [4].

    Args:
        logits: float32 [B, classes]. targets: int64 [B].
    """
    hits = choices(logits) == targets[:, None]
    loss = F.cross_entropy(logits, targets, reduction="none").double().sum()
    count = torch.tensor(len(targets), dtype=torch.float64, device=logits.device)
    return torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss, count])
