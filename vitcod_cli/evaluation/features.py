"""How near the features of a model are to those of a reference, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcod_cli.evaluation.passes import gathered, outputs_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime


def is_of_features(row: Mapping[str, Any]) -> bool:
    """Whether figures, by name, are of features, and not of choices."""
    return "relative_error" in row


@dataclass(frozen=True)
class Nearness:
    """How near one model's features are to a reference's, of each image: the pooled ones, or means over tokens.

    Attributes:
        cosine: float64 [images], of a feature with the reference's.
        error: float64 [images], ||f - f_ref|| / ||f_ref||.
    """

    cosine: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def evaluation(self) -> FeatureEvaluation:
        """Means over the images."""
        return FeatureEvaluation(
            cosine=float(self.cosine.mean()),
            cosine_p5=float(np.quantile(self.cosine, 0.05)),
            relative_error=float(self.error.mean()),
            images=len(self.cosine),
        )


@dataclass(frozen=True)
class FeatureEvaluation:
    """How near the pooled features of a model are to those of its reference, on a data set.

    Attributes:
        cosine: mean cosine of the two.
        cosine_p5: what the worst twentieth of the images doesn't reach.
        relative_error: mean of ||f - f_ref|| / ||f_ref||.
        images: how many there were.
    """

    cosine: float
    cosine_p5: float
    relative_error: float
    images: int

    def line(self) -> str:
        """``* cosine 0.9876 (worst twentieth 0.9512) error 15.3 %``."""
        error = 100 * self.relative_error
        return f"* cosine {self.cosine:.4f} (worst twentieth {self.cosine_p5:.4f}) error {error:.1f} %"

    @property
    def rank(self) -> tuple[float, ...]:
        """The larger the better."""
        return (-self.relative_error,)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``cosine``, ``cosine_p5``, ``relative_error``, ``images``."""
        return asdict(self)


@torch.no_grad()
def compare_pooled(
    models: Sequence[nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    description: str = "eval",
) -> list[Nearness]:
    """Run every model over the images, which are read once. The first model is the reference.

    Args:
        models: images to features [B, C], with one C, in eval mode, on the runtime's device.
        loader: (images [B, C, H, W] normalised, anything) of this process.

    Returns:
        For each model, the images of all processes, the same in each process.

    Raises:
        VitcodError: if no process has an image that can be read.
    """
    found: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for features, _ in outputs_of(models, loader, runtime, reporter, description):
        for parts, own in zip(found, features, strict=True):
            parts.append(nearness_of(own, features[0]))
    return [Nearness(*np.concatenate(parts, axis=1)) for parts in gathered(found)]


def nearness_of(features: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Cosine and relative error of each image, [2, B], of features [B, C]."""
    features, reference = features.double(), reference.double()
    length = reference.norm(dim=1).clamp(min=torch.finfo(reference.dtype).tiny)
    cosine = F.cosine_similarity(features, reference).clamp(-1, 1)  # rounding goes beyond
    return torch.stack([cosine, (features - reference).norm(dim=1) / length]).cpu().numpy()
