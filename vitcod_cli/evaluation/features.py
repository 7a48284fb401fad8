"""Models without a head: how near their features are to those of a reference, image by image."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.evaluation.accuracy import nothing_to_evaluate
from vitcod_cli.evaluation.names import distinct
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

_NAME = 40
"""Columns for the names of models, at most."""

_NOTE = (
    "cosine: of the pooled features with those of the first model, the mean, and the least of the worst twentieth "
    "of the images; error: their distance as a share of the first model's length."
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
        names = ["model", *distinct([model.name for model in self.models], _NAME)]
        width = max(map(cell_len, names))
        rows = [f"{set_cell_size(names[0], width)} sparse  cosine   worst   error"]
        for name, model in zip(names[1:], self.models, strict=True):
            found = model.to_dict()
            sparsity = f"{found.get('sparsity') or 0.0:.1%}"
            rows.append(
                f"{set_cell_size(name, width)} {sparsity:>6} {found['cosine']:7.4f} {found['cosine_p5']:7.4f} "
                f"{found['relative_error']:7.1%}"
            )
        note = f"On {self.models[0].to_dict()['images']} images, without labels. {_NOTE}"
        return [rows[0], "-" * len(rows[0]), *rows[1:], "", *textwrap.wrap(note, 80)]


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
    found: list[list[Tensor]] = [[] for _ in models]
    with reporter.progress(description, total=getattr(loader, "num_images", None), unit="images") as progress:
        for batch, _ in loader:
            images = runtime.to_device(batch)
            with runtime.autocast():
                features = [model(images) for model in models]
            reference = features[0].double()
            length = reference.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
            for parts, own in zip(found, features, strict=True):
                cosine = F.cosine_similarity(own.double(), reference, dim=1)
                parts.append(torch.stack([cosine, (own.double() - reference).norm(dim=1) / length]).cpu())
            progress.advance(len(batch))
    gathered = distributed.gather_objects([[part.numpy() for part in parts] for parts in found])
    if not any(process[0] for process in gathered):
        raise nothing_to_evaluate()
    joined = [
        np.concatenate([part for process in gathered for part in process[index]], axis=1)
        for index in range(len(models))
    ]
    return [Nearness(cosine, error) for cosine, error in joined]
