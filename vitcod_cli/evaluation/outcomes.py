"""Several models on the same images, image by image: what a paired comparison needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcod_cli.evaluation.accuracy import Evaluation, choices
from vitcod_cli.evaluation.passes import gathered, outputs_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime


@dataclass(frozen=True)
class Outcomes:
    """What one model made of each image; those of several models are in the same order.

    Attributes:
        hit1, hit5: bool [images], whether the label is the first, or among the first five (or all, with fewer
            classes) choices.
        loss: float64 [images], cross-entropy in nats.
        agrees: bool [images], whether the first choice is that of the reference.
        divergence: float64 [images], Kullback-Leibler divergence from the reference's probabilities, in nats.
    """

    hit1: NDArray[np.bool_]
    hit5: NDArray[np.bool_]
    loss: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    divergence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.hit1)

    @property
    def evaluation(self) -> Evaluation:
        """Accuracy and mean loss."""
        hits1, hits5 = 100 * float(self.hit1.mean()), 100 * float(self.hit5.mean())
        return Evaluation(hits1, hits5, float(self.loss.mean()), len(self))

    @property
    def agreement(self) -> float:
        """Percent of images whose first choice is the reference's."""
        return 100 * float(self.agrees.mean())

    @property
    def kl(self) -> float:
        """Mean divergence from the reference, in nats."""
        return float(self.divergence.mean())


class LabelledBy:
    """Batches of a loader with the first choice of a model in the place of their labels.

    Agreement with that model is what can be measured on images without labels.

    Attributes:
        num_images: as the loader has it.
    """

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], model: nn.Module, runtime: Runtime) -> None:
        self._loader, self._model, self._runtime = loader, model, runtime
        self.num_images = getattr(loader, "num_images", None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch, _ in self._loader:
            images = self._runtime.to_device(batch)
            with torch.no_grad(), self._runtime.autocast():
                logits = self._model(images)
            yield images, choices(logits)[:, 0]


class Remembered(nn.Module):
    """A model that is asked the same batches again and again, in the same order, and computes them once.

    Its logits are kept in main memory, unless they would take more than a gigabyte.
    """

    def __init__(self, model: nn.Module, most_bytes: int = 1 << 30) -> None:
        super().__init__()
        self.model, self._left = model, most_bytes
        self._logits: list[Tensor] = []
        self._next, self._whole = 0, False

    def rewind(self) -> None:
        """Go back to the first batch; those seen so far are all there are."""
        self._whole = self._next > 0 and self._next == len(self._logits)
        self._next = 0
        if not self._whole:
            self._logits = []

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of the batch that comes next."""
        self._next += 1
        if self._whole:
            return self._logits[self._next - 1].to(images.device)
        logits: Tensor = self.model(images)
        self._left -= logits.numel() * logits.element_size()
        if self._left >= 0:
            self._logits.append(logits.cpu())
        return logits


@torch.no_grad()
def compare(
    models: Sequence[nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    *,
    labelled: bool = True,
    description: str = "compare",
) -> list[Outcomes]:
    """Run every model over the images, which are read once. The first model is the reference.

    Args:
        models: with the same classes, in eval mode, on the runtime's device; images as all of them expect.
        loader: (images [B, C, H, W] normalised, targets int64 [B]) of this process.
        labelled: whether the targets mean anything; without, the reference's first choice is the label.

    Returns:
        The outcomes of each model on the images of all processes, the same in each process.

    Raises:
        VitcodError: if no process has an image that can be read.
    """
    found: list[list[Outcomes]] = [[] for _ in models]
    for logits, targets in outputs_of(models, loader, runtime, reporter, description):
        reference = ReferenceLogits(logits[0])
        labels = targets.to(runtime.device) if labelled else reference.choice
        for parts, own in zip(found, logits, strict=True):
            parts.append(reference.outcomes(own, labels))
    return [joined(parts) for parts in gathered(found)]


class ReferenceLogits:
    """What a batch is compared with; logits float32 [B, classes].

    Attributes:
        choice: int64 [B], its first choices.
    """

    def __init__(self, logits: Tensor) -> None:
        self.choice = choices(logits)[:, 0]
        self._log_probabilities = logits.double().log_softmax(dim=1)

    def outcomes(self, logits: Tensor, labels: Tensor) -> Outcomes:
        """Of a model with these logits; labels int64 [B]."""
        top = choices(logits)
        hits = top == labels[:, None]
        divergence = F.kl_div(
            logits.double().log_softmax(dim=1), self._log_probabilities, reduction="none", log_target=True
        )
        return Outcomes(
            hit1=hits[:, 0].cpu().numpy(),
            hit5=hits.any(dim=1).cpu().numpy(),
            loss=F.cross_entropy(logits, labels, reduction="none").double().cpu().numpy(),
            agrees=(top[:, 0] == self.choice).cpu().numpy(),
            divergence=divergence.sum(dim=1).cpu().numpy(),
        )


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The images of all parts, one part after the other."""
    return Outcomes(
        *(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Outcomes))
    )
