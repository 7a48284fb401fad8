"""Whether images have the same neighbours, by their pooled features, as they have by a reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcod_cli import distributed

NEIGHBOURS = 5
_MOST_SIMILARITIES = 1 << 24
"""Of the matrix that is in memory at a time: 64 MiB."""


@dataclass(frozen=True)
class NeighbourAgreement:
    """How far a model finds the neighbours that the reference finds; shares of 0 to 1.

    Attributes:
        same_nearest: images whose nearest other image is the reference's.
        overlap: of the :data:`NEIGHBOURS` nearest (or all, of fewer images) those that are among the reference's,
            the mean over images.
    """

    same_nearest: float
    overlap: float


def neighbours_of(images: int) -> int:
    """How many neighbours of an image are looked at, of so many images."""
    return max(min(NEIGHBOURS, images - 1), 0)


def compare_neighbours(pooled: Sequence[Tensor], device: torch.device) -> list[NeighbourAgreement | None]:
    """Of every model beside the first, the reference; None where there are not two images.

    Each process finds the neighbours of its own images among those of all; the result is the same in each.

    Args:
        pooled: of each model, float32 [images of this process, C], of one device, images in one order; a process
            without images has [0, 0].
        device: where similarities are computed.
    """
    sums, reference, images = [], None, 0
    for own in pooled:
        everyone, first = _gathered(own)
        images = len(everyone)
        found = nearest(everyone.to(device), first, len(own), neighbours_of(images))
        reference = found if reference is None else reference
        sums.append(_alike(found, reference))
    if images < 2:
        return [None for _ in pooled]
    shares = distributed.all_reduce_sum(torch.stack(sums)) / images
    return [NeighbourAgreement(same, overlap) for same, overlap in shares.tolist()]


def nearest(features: Tensor, first: int, count: int, neighbours: int) -> Tensor:
    """The nearest other images of some, by the cosine of their features, nearest first.

    Args:
        features: float32 [images, C].
        first, count: of the images whose neighbours are wanted.
        neighbours: how many of each; fewer than there are images.

    Returns:
        Their places in ``features``, int64 [count, neighbours].
    """
    unit = torch.nn.functional.normalize(features, dim=1)
    rows = max(_MOST_SIMILARITIES // max(len(unit), 1), 1)
    parts = [torch.empty(0, neighbours, dtype=torch.int64, device=features.device)]
    for start in range(first, first + count, rows):
        some = torch.arange(start, min(start + rows, first + count), device=features.device)
        similarity = unit[some] @ unit.T
        similarity[some - start, some] = -torch.inf  # an image is no neighbour of itself
        parts.append(similarity.topk(neighbours, dim=1).indices)
    return torch.cat(parts)


def _gathered(own: Tensor) -> tuple[Tensor, int]:
    """The features of all processes, on the CPU, and the place of the first of this one's."""
    processes = distributed.gather_objects(own.cpu())
    first = sum(len(other) for other in processes[: distributed.rank()])
    filled = [other for other in processes if len(other)]
    return torch.cat(filled) if filled else own, first


def _alike(found: Tensor, reference: Tensor) -> Tensor:
    """Summed over images [n, neighbours]: whether the nearest are the same, and the share that is: float64 [2]."""
    if not found.numel():
        return found.new_zeros(2, dtype=torch.float64)
    common = (found[:, :, None] == reference[:, None, :]).any(dim=2).double().mean(dim=1)
    return torch.stack([(found[:, 0] == reference[:, 0]).double().sum(), common.sum()])
