"""Models without a head: how near their features are to those of a reference, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcod_cli.evaluation.passes import gathered, outputs_of
from vitcod_cli.evaluation.table import model_table
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

_NOTE = (
    "cosine: of the pooled features with those of the first model, the mean, and what the worst twentieth of the "
    "images doesn't reach; error: their distance as a share of the first model's length, the mean."
)


@dataclass(frozen=True)
class Nearness:
    """What one model makes of each image, beside a reference.

    Attributes:
        cosine: float64 [images], of its pooled feature with the reference's.
        error: float64 [images], ||f - f_ref|| / ||f_ref||.
    """

    cosine: NDArray[np.float64]
    error: NDArray[np.float64]


@dataclass(frozen=True)
class FeatureModel:
    """One model of the report; ``about`` as for :class:`~vitcod_cli.evaluation.report.ModelReport`."""

    name: str
    about: Mapping[str, Any]
    nearness: Nearness

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat."""
        nearness = self.nearness
        return {
            **self.about,
            "cosine": float(nearness.cosine.mean()),
            "cosine_p5": float(np.quantile(nearness.cosine, 0.05)),
            "relative_error": float(nearness.error.mean()),
            "images": len(nearness.cosine),
        }


@dataclass(frozen=True)
class FeaturesReport:
    """All models of one call, the reference first; ``about`` is what they share."""

    models: Sequence[FeatureModel]
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``models`` beside what they share."""
        return {"models": [{"name": model.name, **model.to_dict()} for model in self.models], **self.about}

    def lines(self) -> list[str]:
        """A table of at most 80 columns."""
        found = [model.to_dict() for model in self.models]
        columns = [
            ["sparse", *(f"{one.get('sparsity') or 0.0:.1%}" for one in found)],
            ["cosine", *(f"{one['cosine']:.4f}" for one in found)],
            ["worst", *(f"{one['cosine_p5']:.4f}" for one in found)],
            ["error", *(f"{one['relative_error']:.1%}" for one in found)],
        ]
        note = f"On {found[0]['images']} images, whose labels aren't looked at. {_NOTE}"
        return model_table([model.name for model in self.models], columns, note)


@torch.no_grad()
def compare_features(
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
    error = (features - reference).norm(dim=1) / length
    return torch.stack([F.cosine_similarity(features, reference), error]).cpu().numpy()
