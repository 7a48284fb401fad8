"""Which entries of the attention are worth most to the model: what ``gen-mask --allocate`` ranks.

Without its key j, a query gets o + (o - v_j) p_ij / (1 - p_ij) from a head instead of o, which is the
derivative of o by the logit s_ij, over -(1 - p_ij). So the answer's squared derivative by s_ij, over
(1 - p_ij)^2, is the damage that pruning the entry does. The answer's change is measured by the divergence
KL(p || p') between the class probabilities before and after: to second order it is half of the change
squared in the metric of the Fisher information F = diag(p) - p p^T, in which no label occurs. A model without
a head gives features, whose change is measured by its squared length, as a share of the feature's own.

The damage of pruning many entries is not the sum of theirs: keys stand in for each other. So it is measured
in rounds, each under a mask that leaves half of the entries that the one before it left.

Nor is it the damage that stays. Calibration mends much of what pruning does to the first blocks, and little behind
them, where the class token of few images carries the answer (see docs/research.md): there damage counts more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.artifacts.scratch import Scratch
from vitcod_cli.attention.damage import DamageKernel
from vitcod_cli.attention.ranks import Values, count_open, final_ranks, rank_others
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.budget import budget, largest_entries, necessary_entries
from vitcod_cli.masks.ranking import Keep
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape, attentions, using
from vitcod_cli.model.read_rows import class_tokens_read
from vitcod_cli.reporting import Progress, Reporter
from vitcod_cli.runtime import Runtime, free_memory

ROUNDS = 5
"""The first sees all entries, the last a sixteenth of them."""

ENTRIES = 2**21
"""Attention entries of a head over the images of a batch, at most (or those of one image)."""


def collect_importance(
    model: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    reporter: Reporter,
    *,
    rounds: int = ROUNDS,
    late_weight: float = 1.0,
    scratch: Scratch | None = None,
) -> NDArray[np.float32]:
    """The order in which entries are worth keeping, over all blocks and heads together.

    Weights, mask and mode of the model stay as they are. Another number of processes draws other
    directions (:func:`fisher_direction`), so its order is a little different.

    Args:
        late_weight: see :func:`block_weights`; 1 counts the damage as it is.
        scratch: where the result is made; None: in memory. Masks take two bytes an entry of memory beside it.

    Returns:
        float32 [L, H, N, N]: the share of all entries that are worth less than this one, 0 to 1.

    Raises:
        VitcodError: if the model yields values that are not finite.
    """
    before = [layer.keep for layer in attentions(model)]
    weights = block_weights(model, late_weight)
    free_memory()  # of whatever came before: what follows takes pieces of other sizes
    values: Values = (scratch or Scratch()).zeros(attention_shape(model), np.float32)
    ranked = _rank_pruned(values, before)
    try:
        with reporter.progress("importance", rounds * len(images)) as progress:
            for number in range(rounds):
                sparsity, last = 1 - 0.5 ** (number + 1), number + 1 == rounds
                if not last and not _has_more(values, sparsity):
                    progress.advance(len(images))  # the next round sees the same entries, and its figures count
                    continue
                _measure_again(values, model, images, runtime, progress=progress, seed=number)
                for block, weight in zip(values, weights, strict=True):
                    np.multiply(block, np.float32(weight), out=block, where=block > 0)  # ranks are negative
                keep = None if last else _most_important(values, sparsity, model.num_prefix_tokens)
                if keep is None:
                    break
                ranked = rank_others(values, keep, ranked)
                for layer, kept in zip(attentions(model), keep, strict=True):
                    layer.set_keep(torch.from_numpy(kept))
                del keep  # the layers have it
    finally:
        for layer, mask in zip(attentions(model), before, strict=True):
            layer.set_keep(mask)
    free_memory()
    rank_others(values, None, ranked)
    return final_ranks(values)


def block_weights(model: Transformer, late_weight: float) -> list[float]:
    """How many times the damage in each block counts: from 1 in the first to ``late_weight`` in the last.

    Each block's is the same multiple of the one before. All are 1 where the head doesn't read class tokens alone.
    """
    last = len(model.blocks) - 1
    if not class_tokens_read(model) or not last:
        return [1.0] * (last + 1)
    weights: list[float] = [late_weight ** (index / last) for index in range(last + 1)]
    return weights


def _rank_pruned(values: Values, masks: list[Tensor | None]) -> int:
    """Rank what a mask of the model prunes already below all else; returns how many entries that are."""
    pruned = [mask for mask in masks if mask is not None]
    if not pruned:
        return 0
    return rank_others(values, np.stack([mask.cpu().numpy() for mask in pruned]), 0)


def _measure_again(
    values: Values,
    model: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    *,
    progress: Progress,
    seed: int,
) -> None:
    """Give the open entries of ``values``, which the model still keeps, the damage of pruning them; in place.

    Those with a rank are negative, and stay: no damage is added to what a mask prunes.
    """
    if distributed.is_main():
        for block in values:
            np.minimum(block, 0, out=block)
    else:
        values.fill(0)
    total = torch.from_numpy(values).to(runtime.device)  # the same memory on a CPU
    add_damage(model, images, runtime, total, progress, seed=seed)
    for mine, block in zip(values, total, strict=True):
        distributed.all_reduce_sum(block)
        if not block.isfinite().all():
            raise VitcodError(
                "The importance of attention entries is not finite, so the weights or the images are broken, or "
                "--precision float16 overflows; try --precision float32, else another checkpoint."
            )
        mine[...] = block.cpu().numpy()


def _has_more(values: Values, sparsity: float) -> bool:
    """Whether a mask of ``sparsity`` would prune entries that have no rank yet."""
    return count_open(values) > budget(values.size, sparsity)


def _most_important(values: Values, sparsity: float, num_prefix_tokens: int) -> Keep | None:
    """An allocated mask of the open entries; None where a mask must keep more than ``sparsity`` leaves."""
    keep = necessary_entries(values, num_prefix_tokens)
    if np.count_nonzero(keep) > (1 - sparsity) * keep.size:
        return None
    keep, _ = largest_entries(values, sparsity, keep)
    for block, numbers in zip(keep, values, strict=True):
        np.logical_and(block, numbers >= 0, out=block)
    return keep


def add_damage(
    model: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    total: Tensor,
    progress: Progress | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> None:
    """Add to ``total`` twice the divergence that pruning an entry alone causes, summed over ``images``.

    An estimate: each image stands for the derivatives in one random direction whose covariance is F. Where a
    mask of the model prunes, nothing is added.

    Args:
        images: this process's share of them.
        total: floats [L, H, N, N].
        batch_size: images in a batch, on which the result depends in float32's last bits only; None: up to 32,
            and fewer where an image has many tokens.
    """
    entropy = (runtime.settings.seed * 1_000_003 + seed) * 1009 + distributed.rank()
    generator = torch.Generator().manual_seed(entropy)
    batch_size = batch_size or min(max(ENTRIES // total.shape[-1] ** 2, 1), 32)
    with _frozen(model), using(model, lambda index: DamageKernel(total[index])):
        for batch in images.batches(batch_size):
            with torch.enable_grad(), runtime.autocast():
                logits = model(runtime.to_device(batch).requires_grad_()).float()
            direction = fisher_direction if model.num_classes else feature_direction
            (direction(logits, generator) * logits).sum().backward()
            if progress is not None:
                progress.advance(len(batch))


def fisher_direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector [B, classes] for each image with mean 0 and covariance diag(p) - p p^T.

    Its product with a Jacobian of the logits has the Fisher information as its expected square. Signs
    on sqrt(p) vary less than the score of a drawn label, which has the same covariance.

    Args:
        logits: float32 [B, classes]; p is their softmax.
    """
    p = logits.detach().softmax(dim=-1)
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    root = p.sqrt() * signs
    return root - p * root.sum(dim=-1, keepdim=True)


def feature_direction(features: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector [B, C] for each image with mean 0 and covariance I / ||f||^2.

    For a model without a head: its product with a Jacobian of the features has the squared change of the
    feature, as a share of its squared length, as its expected square.

    Args:
        features: float32 [B, C].
    """
    signs = torch.randint(0, 2, features.shape, generator=generator).to(features) * 2 - 1
    length: Tensor = features.detach().norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return signs / length


@contextmanager
def _frozen(model: Transformer) -> Iterator[None]:
    """``model`` in eval mode and without gradients of its weights for the time of the block."""
    training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
