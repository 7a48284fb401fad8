"""How much the answer of a model depends on each block, or head: one alone is pruned, all others stay dense.

The tokens that enter a block are the same whatever is pruned in it, so they are computed once, and of each
pruned block only the rest of the forward pass is run. No labels: the answer is compared with the dense one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.features import nearness_of
from vitcod_cli.evaluation.outcomes import ReferenceLogits
from vitcod_cli.evaluation.passes import gathered
from vitcod_cli.masks.partial import PartialMask
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attentions
from vitcod_cli.model.passes import answer_of, block_passes, tokens_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

Changes = NDArray[np.float64]
"""Of each image, [2, B]: how far the answer is from the dense one, and whether its first choice is the same."""


@dataclass(frozen=True)
class Sensitivity:
    """What pruning one block, or head, does to the answer.

    Attributes:
        block, head, target, sparsity: see :class:`~vitcod_cli.masks.partial.PartialMask`.
        change: mean over the images of KL(dense || pruned) in nats; of a model without a head, of the distance
            of the features as a share of the dense ones' length.
        standard_error: of ``change``; 0 of one image.
        agreement: percent of images whose first choice stays; None without a head.
        images: how many there were.
    """

    block: int
    head: int | None
    target: float
    sparsity: float
    change: float
    standard_error: float
    agreement: float | None
    images: int


@torch.no_grad()
def measure_sensitivity(
    model: Transformer,
    images: CalibrationImages,
    masks: Sequence[PartialMask],
    runtime: Runtime,
    reporter: Reporter,
    *,
    batch_size: int = 32,
) -> list[Sensitivity]:
    """Compare the answer under each of ``masks`` with the dense one.

    Args:
        model: without a mask, on the runtime's device; its mode is restored.
        images: this process's share of pictures that the masks weren't made from.
        batch_size: images in a batch, on which results depend in float32's last bits only.

    Returns:
        One for each mask, in their order, over the images of all processes; the same in each.

    Raises:
        VitcodError: if no process has an image, or the model yields values that are not finite.
    """
    training, last = model.training, len(model.blocks)
    found: list[list[Changes]] = [[] for _ in masks]
    places = _places(model)
    work = sum(last - places[mask.block] for mask in masks) * len(images)
    model.eval()
    try:
        with reporter.progress("sensitivity", work, unit="block passes") as progress:
            for batch in images.batches(batch_size):
                for number, changes in _changes(model, runtime.to_device(batch), masks, runtime):
                    found[number].append(changes)
                    block = masks[number].block
                    progress.advance(len(batch) * (last - places[block]), block=f"{block + 1}/{len(places)}")
    finally:
        model.train(training)
    return [
        _summary(mask, np.concatenate(parts, axis=1), choosing=model.num_classes > 0)
        for mask, parts in zip(masks, gathered(found), strict=True)
    ]


def _places(model: Transformer) -> list[int]:
    """The block of the model that each attention layer is in; timm has blocks with two."""
    return [index for index, block in enumerate(model.blocks) for _ in attentions(block)]


def _changes(
    model: Transformer, images: Tensor, masks: Sequence[PartialMask], runtime: Runtime
) -> Iterator[tuple[int, Changes]]:
    """The number of each mask, and what it changes, block after block."""
    layers, places = attentions(model), _places(model)
    with runtime.autocast():
        tokens = tokens_of(model, images)
        dense = answer_of(model, tokens).float()
    reference = ReferenceLogits(dense) if model.num_classes else None
    for place, block in enumerate(block_passes(model)):
        for number, mask in enumerate(masks):
            if places[mask.block] != place:
                continue
            with _pruned(layers[mask.block], mask), runtime.autocast():
                answer = answer_of(model, tokens, place).float()
            yield number, _compared(answer, dense, reference)
        with runtime.autocast():
            tokens = block(tokens)


@contextmanager
def _pruned(layer: SparseLowRankAttention, mask: PartialMask) -> Iterator[None]:
    """``layer`` under the mask for the time of the block; one that prunes nothing is none."""
    if not mask.part_keep.all():
        layer.set_keep(torch.from_numpy(mask.keep(layer.num_heads)))
    try:
        yield
    finally:
        layer.set_keep(None)


def _compared(answer: Tensor, dense: Tensor, reference: ReferenceLogits | None) -> Changes:
    if reference is None:
        error = nearness_of(answer, dense)[1]
        return np.stack([error, np.zeros_like(error)])
    outcomes = reference.outcomes(answer, reference.choice)
    return np.stack([outcomes.divergence, outcomes.agrees.astype(np.float64)])


def _summary(mask: PartialMask, changes: Changes, *, choosing: bool) -> Sensitivity:
    change, agrees = changes
    if not np.isfinite(change).all():
        raise VitcodError(
            f"The answer under a pruned block {mask.block} is not finite, so the weights or the images are "
            "broken, or --precision float16 overflows; try --precision float32, else another checkpoint."
        )
    spread = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    return Sensitivity(
        block=mask.block,
        head=mask.head,
        target=mask.target,
        sparsity=mask.sparsity,
        change=float(change.mean()),
        standard_error=spread / len(change) ** 0.5,
        agreement=100 * float(agrees.mean()) if choosing else None,
        images=len(change),
    )
