"""Models judged by their features beside a reference's: the pooled one, those of the patches, and neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcod_cli.evaluation.extractor import Features
from vitcod_cli.evaluation.features import Nearness, nearness_of
from vitcod_cli.evaluation.neighbours import NeighbourAgreement, compare_neighbours
from vitcod_cli.evaluation.passes import batches_of, gathered
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime


@dataclass(frozen=True)
class FeatureComparison:
    """One model beside the reference.

    Attributes:
        pooled: its pooled feature.
        patches: its patch tokens, of each image the mean over them; None where it or the reference gives none, or
            they are of other patches.
        neighbours: by the pooled feature; None of a single image.
    """

    pooled: Nearness
    patches: Nearness | None
    neighbours: NeighbourAgreement | None

    @property
    def images(self) -> int:
        """How many there were."""
        return len(self.pooled.cosine)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that aren't known None; all but ``images`` are shares or cosines."""
        patches = None if self.patches is None else self.patches.evaluation
        neighbours = self.neighbours
        return {
            **self.pooled.evaluation.to_dict(),
            "patch_cosine": None if patches is None else patches.cosine,
            "patch_error": None if patches is None else patches.relative_error,
            "same_nearest": None if neighbours is None else neighbours.same_nearest,
            "neighbour_overlap": None if neighbours is None else neighbours.overlap,
        }


@torch.no_grad()
def compare_features(
    models: Sequence[nn.Module],
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    description: str = "eval",
) -> list[FeatureComparison]:
    """Run every model over the images, which are read once. The first model is the reference.

    Of the tokens a batch of two models is in memory; what is kept of an image is its pooled features.

    Args:
        models: images to :class:`Features`, the pooled ones of one width, in eval mode, on the runtime's device.
        loader: (images [B, C, H, W] normalised, anything) of this process.

    Returns:
        For each model, the images of all processes, the same in each process.

    Raises:
        VitcodError: if no process has an image that can be read.
    """
    collected = [_Collected() for _ in models]
    for images, _ in batches_of(loader, runtime, reporter, description):
        reference: Features | None = None
        for model, own in zip(models, collected, strict=True):
            with runtime.autocast():
                features: Features = model(images)
            reference = features if reference is None else reference
            own.add(features, reference)
    figures = [np.concatenate(parts, axis=1) for parts in gathered([own.figures for own in collected])]
    neighbours = compare_neighbours([own.all_pooled for own in collected], runtime.device)
    return [
        FeatureComparison(Nearness(*both[:2]), Nearness(*both[2:]) if len(both) > 2 else None, same)
        for both, same in zip(figures, neighbours, strict=True)
    ]


@dataclass(frozen=True)
class _Collected:
    """Of one model on this process.

    Attributes:
        figures: of each batch float64 [2, B], cosine and error of the pooled feature, or [4, B] with the patches'.
        pooled: of each batch float32 [B, C] on the CPU.
    """

    figures: list[NDArray[np.float64]] = field(default_factory=list)
    pooled: list[Tensor] = field(default_factory=list)

    def add(self, features: Features, reference: Features) -> None:
        figures = [nearness_of(features.pooled, reference.pooled)]
        own, theirs = features.patches, reference.patches
        if own is not None and theirs is not None and own.shape == theirs.shape:
            figures.append(_patch_nearness(own, theirs))
        self.figures.append(np.concatenate(figures))
        self.pooled.append(features.pooled.float().cpu())

    @property
    def all_pooled(self) -> Tensor:
        return torch.cat(self.pooled) if self.pooled else torch.empty(0, 0, device="cpu")


def _patch_nearness(patches: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Mean cosine and mean relative error of the tokens of each image, [2, B], of patches [B, P, C]."""
    pairs = zip(patches, reference, strict=True)  # an image at a time: in float64 a batch would be large
    return np.stack([nearness_of(own, theirs).mean(axis=1) for own, theirs in pairs], axis=1)
