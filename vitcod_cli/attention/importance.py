"""Which entries of the attention are worth most to the model: what ``gen-mask --allocate`` ranks.

Without its key j, a query gets o + (o - v_j) p_ij / (1 - p_ij) from a head instead of o, which is the
derivative of o by the logit s_ij, over -(1 - p_ij). So the answer's squared derivative by s_ij, over
(1 - p_ij)^2, is the damage that pruning the entry does. The answer's change is measured by the divergence
KL(p || p') between the class probabilities before and after: to second order it is half of the change
squared in the metric of the Fisher information F = diag(p) - p p^T, in which no label occurs. A model without
a head gives features, whose change is measured by its squared length, as a share of the feature's own.

The damage of pruning many entries is not the sum of theirs: keys stand in for each other. So it is measured
in rounds, each under a mask that leaves half of the entries that the one before it left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vitcod_cli import distributed
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.masks.budget import necessary_entries
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.kernels.base import Heads, Kernel, masked_logits, merge
from vitcod_cli.model.layers import attention_shape, clear_keep_mask, keep_mask, set_keep_mask, using
from vitcod_cli.reporting import Progress, Reporter
from vitcod_cli.runtime import Runtime, free_memory

MIN_LEFT = 0.01
"""Least probability that other keys are taken to have: where a query sees one key alone, what it would
get without it is rounding."""


ROUNDS = 5
"""The first sees all entries, the last a sixteenth of them."""

ENTRIES = 2**21
"""Attention entries of a head over the images of a batch, at most (or those of one image)."""

RANKED = 2**20
"""Entries whose ranks are written at once."""


def collect_importance(
    model: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    reporter: Reporter,
    rounds: int = ROUNDS,
) -> NDArray[np.float32]:
    """The order in which entries are worth keeping, over all blocks and heads together.

    Weights, mask and mode of the model stay as they are. Another number of processes draws other
    directions (:func:`fisher_direction`), so its order is a little different.

    Returns:
        float32 [L, H, N, N]: the share of all entries that are worth less than this one, 0 to 1.

    Raises:
        VitcodError: if the model yields values that are not finite.
    """
    mask, prefix = keep_mask(model), model.num_prefix_tokens
    keep = torch.ones(attention_shape(model), dtype=torch.bool) if mask is None else mask
    worth = torch.zeros(keep.shape, dtype=torch.float64, device=runtime.device)
    worth.masked_fill_(~keep.to(worth.device), -1)
    try:
        with reporter.progress("importance", rounds * len(images)) as progress:
            for number in range(rounds):
                sparsity = 1 - 0.5 ** (number + 1)
                if number + 1 < rounds and not _has_more(keep, sparsity):
                    progress.advance(len(images))  # the next round sees the same entries, and its figures count
                    continue
                free_memory()  # of whatever came before: what follows takes pieces of other sizes
                _measure_again(worth, keep, model, images, runtime, progress=progress, seed=number)
                ours = worth.cpu().numpy()
                if np.count_nonzero(necessary_entries(ours, prefix)) > (1 - sparsity) * ours.size:
                    break
                keep = keep & torch.from_numpy(allocated_mask(ours, sparsity, prefix))
                set_keep_mask(model, keep)
    finally:
        clear_keep_mask(model)
        if mask is not None:
            set_keep_mask(model, mask)
    free_memory()
    ascending = ours.argsort(axis=None, kind="stable")
    del ours, worth
    return _ranks(ascending).reshape(keep.shape)


def _measure_again(
    worth: Tensor,
    keep: Tensor,
    model: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    *,
    progress: Progress,
    seed: int,
) -> None:
    """Give the entries of ``worth`` that the model still keeps the mean damage of pruning them, and more.

    In place, for ``worth`` may take gigabytes. Whatever is left now is worth more than what went before.
    """
    most = float(worth.max())
    if distributed.is_main():
        worth.masked_fill_(keep.to(worth.device), 0)  # no damage is added to the others
    else:
        worth.zero_()
    add_damage(model, images, runtime, worth, progress, seed=seed)
    distributed.all_reduce_sum(worth)
    count = distributed.all_reduce_sum(torch.tensor(len(images), dtype=torch.int64, device=runtime.device))
    for block, kept in zip(worth, keep, strict=True):
        if not block.isfinite().all():
            raise VitcodError(
                "The importance of attention entries is not finite, so the weights or the images are broken, or "
                "--precision float16 overflows; try --precision float32, else another checkpoint."
            )
        block.copy_(torch.where(kept.to(block.device), block / int(count) + most, block))


def _has_more(keep: Tensor, sparsity: float) -> bool:
    """Whether a mask of ``sparsity`` would prune entries that ``keep`` leaves."""
    return int(keep.count_nonzero()) > round((1 - sparsity) * keep.numel())


def _ranks(ascending: NDArray[np.intp]) -> NDArray[np.float32]:
    """The share of all entries that come before each, where these are the indices of all in their order."""
    ranks = np.empty(ascending.size, dtype=np.float32)
    for start in range(0, ascending.size, RANKED):
        few = ascending[start : start + RANKED]
        ranks[few] = np.arange(start, start + len(few)) / ascending.size
    return ranks


class DamageKernel(Kernel):
    """Explicit attention whose backward pass adds up the damage that pruning each entry does.

    Args:
        total: float64 [H, N, N]; squared derivatives by the logits over (1 - p)^2, summed over the images of
            each batch, are added to it.
    """

    def __init__(self, total: Tensor) -> None:
        super().__init__()
        self.total = total

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            logits = masked_logits(q, k, None, heads.bias)
            if keep is not None:
                logits.masked_fill_(~keep, -torch.inf)
            logits = _Watched.apply(logits, self.total)
            probabilities = logits.softmax(dim=-1)
            return merge(probabilities.to(v.dtype) @ v)

        # Logits and probabilities are computed again in the backward pass, so that only one layer's are there.
        attended: Tensor = checkpoint(
            attend, heads.q, heads.k, heads.v, use_reentrant=False, preserve_rng_state=False
        )
        return attended


class _Watched(torch.autograd.Function):
    """The logits as they are; the backward pass adds the damage to ``total``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, total: Tensor) -> Tensor:
        """Of logits [B, H, N, N] and total float64 [H, N, N]."""
        ctx.save_for_backward(logits)
        ctx.total = total
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient as it is."""
        (logits,) = ctx.saved_tensors
        left = torch.softmax(logits, dim=-1, dtype=torch.float32).neg_().add_(1).clamp_(min=MIN_LEFT)
        ctx.total.add_(torch.div(gradient, left, out=left).square_().sum(dim=0))
        return gradient, None


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
        total: float64 [L, H, N, N].
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
