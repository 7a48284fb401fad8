"""Which entries of the attention are worth most to the model: what ``gen-mask --allocate`` ranks.

Without its key j, a query gets o + (o - v_j) p_ij / (1 - p_ij) from a head instead of o, which is the
derivative of o by the logit s_ij, over -(1 - p_ij). So the answer's squared derivative by s_ij, over
(1 - p_ij)^2, is the damage that pruning the entry does. The answer's change is measured by the divergence
KL(p || p') between the class probabilities before and after: to second order it is half of the change
squared in the metric of the Fisher information F = diag(p) - p p^T, in which no label occurs.

The damage of pruning many entries is not the sum of theirs: keys stand in for each other. So it is measured
in rounds, each under a mask that leaves half of the entries that the one before it left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask, necessary_entries
from vitcod_cli.model.kernels.base import Heads, Kernel, masked_logits, merge
from vitcod_cli.model.layers import attention_shape, clear_keep_mask, keep_mask, set_keep_mask, using
from vitcod_cli.reporting import Progress, Reporter
from vitcod_cli.runtime import Runtime

MIN_LEFT = 0.01
"""Least probability that other keys are taken to have: where a query sees one key alone, what it would
get without it is rounding."""


ROUNDS = 5
"""The first sees all entries, the last a sixteenth of them."""


def collect_importance(
    model: VisionTransformer,
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
    keep = np.ones(attention_shape(model), dtype=np.bool_) if mask is None else mask.numpy()
    worth = np.where(keep, 0.0, -1.0)
    try:
        with reporter.progress("importance", rounds * len(images)) as progress:
            for number in range(rounds):
                damage = pruning_damage(model, images, runtime, progress, seed=number)
                # Whatever is left now is worth more than what went before.
                worth = np.where(keep, damage + worth.max(), worth)
                sparsity = 1 - 0.5 ** (number + 1)
                if np.count_nonzero(necessary_entries(worth, prefix)) > (1 - sparsity) * worth.size:
                    break
                keep = keep & allocated_mask(worth, sparsity, prefix)
                set_keep_mask(model, torch.from_numpy(keep))
    finally:
        clear_keep_mask(model)
        if mask is not None:
            set_keep_mask(model, mask)
    order = np.empty(worth.size, dtype=np.float32)
    order[worth.argsort(axis=None, kind="stable")] = np.arange(worth.size) / worth.size
    return order.reshape(worth.shape)


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
        logits = masked_logits(heads.q, heads.k, keep)
        left = (1 - logits.detach().float().softmax(dim=-1)).clamp_min(MIN_LEFT)

        def add_damage(gradient: Tensor) -> None:
            self.total.add_((gradient.float() / left).square().sum(dim=0))

        logits.register_hook(add_damage)  # type: ignore[no-untyped-call]
        probabilities = logits.softmax(dim=-1)
        return merge(probabilities.to(heads.v.dtype) @ heads.v)


def pruning_damage(
    model: VisionTransformer,
    images: CalibrationImages,
    runtime: Runtime,
    progress: Progress | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Mean over the images of all processes of twice the divergence that pruning an entry alone causes.

    An estimate: each image stands for the derivatives in one random direction whose covariance is F.

    Returns:
        float64 [L, H, N, N], not negative; 0 where a mask of the model prunes.

    Raises:
        VitcodError: if a value is not finite.
    """
    sums = torch.zeros(attention_shape(model), dtype=torch.float64, device=runtime.device)
    entropy = (runtime.settings.seed * 1_000_003 + seed) * 1009 + distributed.rank()
    generator = torch.Generator().manual_seed(entropy)
    with _frozen(model), using(model, lambda index: DamageKernel(sums[index])):
        for batch in images.batches(batch_size):
            with torch.enable_grad(), runtime.autocast():
                logits = model(runtime.to_device(batch).requires_grad_()).float()
            (fisher_direction(logits, generator) * logits).sum().backward()
            if progress is not None:
                progress.advance(len(batch))
    count = distributed.all_reduce_sum(torch.tensor(len(images), dtype=torch.int64, device=runtime.device))
    mean: NDArray[np.float64] = (distributed.all_reduce_sum(sums) / int(count)).cpu().numpy()
    if not np.isfinite(mean).all():
        raise VitcodError(
            "The importance of attention entries is not finite, so the weights or the images are broken, or "
            "--precision float16 overflows; try --precision float32, else another checkpoint."
        )
    return mean


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


@contextmanager
def _frozen(model: VisionTransformer) -> Iterator[None]:
    """``model`` in eval mode and without gradients of its weights for the time of the block."""
    training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
