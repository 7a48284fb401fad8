"""The mean attention map of a model over a data set (step 2 of the method)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.artifacts.scratch import Scratch
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.auto_encoder import accurate_dtype
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.kernels.base import Heads, Kernel, added_to_logits, merge, slices
from vitcod_cli.model.layers import attention_shape, using
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

IMAGES = 32
"""Images whose probabilities are added up in float32, at most."""

ENTRIES = 2**22
"""Attention entries of a head over the images that a model on a CPU is shown at once, at most (or one image's)."""

COLLECTED_BYTES = 32 * 2**20
"""Attention maps are collected so many bytes of probabilities at a time."""


class CollectingKernel(Kernel):
    """Explicit attention, some images and queries at a time, that adds up its probabilities.

    Args:
        total: float64 [H, N, N]; the probabilities, summed over the images of each batch, are added to it.
    """

    def __init__(self, total: Tensor, images: int = IMAGES) -> None:
        super().__init__()
        self.total, self.images = total, images

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""
        q, k, v = heads.q, heads.k, heads.v
        # In the layout that merge() wants, so that it copies nothing.
        attended = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for few in slices(len(q), self.images):
            # Contiguous: as views they would be copied for every product.
            q_, k_, v_ = (x[few].contiguous() for x in (q, k.transpose(-2, -1), v))
            # At batch 256 the probabilities of ViT-Base alone would take 500 MB.
            row = q_.dtype.itemsize * q_.shape[0] * q_.shape[1] * q_.shape[2]
            for part in slices(q_.shape[2], max(COLLECTED_BYTES // row, 1)):
                logits = (q_[:, :, part] * q.shape[-1] ** -0.5) @ k_
                mask, bias = (x if x is None else x[:, part] for x in (keep, heads.bias))
                added = added_to_logits(mask, bias, q.dtype)
                if added is not None:
                    logits += added
                probabilities = logits.to(accurate_dtype(logits)).softmax(dim=-1)
                self.total[:, part] += probabilities.detach().sum(dim=0)
                attended[few, :, part] = probabilities.to(v.dtype) @ v_
        return merge(attended)


@torch.no_grad()
def collect_attention(
    model: Transformer,
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    max_images: int | None = None,
    *,
    scratch: Scratch | None = None,
) -> tuple[NDArray[np.float32], int]:
    """softmax(q k^T / sqrt(d)) of every block and head, averaged over the images of all processes.

    Probabilities are float32 and their sums float64, so that the result depends neither on the number
    of processes nor on the batch size beyond float32's last bits. The model's training mode is restored.

    Args:
        loader: (images [B, C, H, W] normalised, targets) of this process.
        max_images: stop after this many images, over all processes.
        scratch: where the map, and on a CPU its sums, are kept; None: in memory, 8 bytes an entry.

    Returns:
        The map, float32 [L, H, N, N], its rows summing to 1, and the number of images.

    Raises:
        VitcodError: if there is no image, or the model yields values that are not finite.
    """
    mine = None if max_images is None else len(range(distributed.rank(), max_images, distributed.world_size()))
    training = model.training
    model.eval()
    shape, scratch = attention_shape(model), scratch or Scratch()
    sums = [_zeros(shape[1:], runtime.device, scratch) for _ in range(shape[0])]
    try:
        with using(model, lambda index: CollectingKernel(sums[index])):
            images_seen = _show(model, loader, runtime, reporter, mine)
    finally:
        model.train(training)
    count = torch.tensor(images_seen, dtype=torch.int64, device=runtime.device)
    num_images = int(distributed.all_reduce_sum(count))
    if num_images == 0:
        raise VitcodError("There is no image to average attention over; check --data-path and the split.")
    mean = scratch.zeros(shape, np.float32)
    for block in mean:
        total = sums.pop(0)  # which gives its memory back: never are all sums there beside the whole map
        block[...] = distributed.all_reduce_sum(total).div_(num_images).float().cpu().numpy()
    _check_finite(mean)
    return mean, num_images


def _zeros(shape: tuple[int, ...], device: torch.device, scratch: Scratch) -> Tensor:
    """The sums of a block, float64 [H, N, N]; a GPU has its own memory."""
    if device.type == "cpu":
        return torch.from_numpy(scratch.zeros(shape, np.float64))
    return torch.zeros(shape, dtype=torch.float64, device=device)


def _show(
    model: Transformer,
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    limit: int | None,
) -> int:
    """Run ``model`` over at most ``limit`` images of ``loader``; returns how many there were."""
    total = getattr(loader, "num_images", None) or None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    seen, size = 0, images_at_once(attention_shape(model)[-1])
    with reporter.progress("attention", total) as progress:
        for images, _ in loader:
            part = images if limit is None else images[: limit - seen]
            if not len(part):
                break
            for few in slices(len(part), size if runtime.device.type == "cpu" else len(part)):
                with runtime.autocast():
                    model(runtime.to_device(part[few]))
            seen += len(part)
            progress.advance(len(part))
            if seen == limit:
                break
            del images, part  # before the next batch is read: at 512 pixels each takes 300 MB
    return seen


def images_at_once(num_tokens: int) -> int:
    """How many images the model is shown at once on a CPU; whole :data:`IMAGES` where it can be more."""
    images = max(ENTRIES // num_tokens**2, 1)
    return images - images % IMAGES if images > IMAGES else images


def _check_finite(attention: NDArray[np.float32]) -> None:
    finite = [bool(np.isfinite(block).all()) for block in attention]
    if not all(finite):
        raise VitcodError(
            f"The attention of block {int(np.argmin(finite))} is not finite, so the weights or the images are "
            "broken, or --precision float16 overflows; try --precision float32, else another checkpoint."
        )
