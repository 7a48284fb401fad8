"""The mean attention map of a model over a data set (step 2 of the method)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import attention_shape, attentions
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime


@torch.no_grad()
def collect_attention(
    model: VisionTransformer,
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    max_images: int | None = None,
) -> tuple[NDArray[np.float32], int]:
    """softmax(q k^T / sqrt(d)) of every block and head, averaged over the images of all processes.

    Probabilities are float32 and their sums float64, so that the result depends neither on the number
    of processes nor on the batch size beyond float32's last bits. The model's training mode is restored.

    Args:
        loader: (images [B, C, H, W] normalised, targets) of this process.
        max_images: stop after this many images, over all processes.

    Returns:
        The map, float32 [L, H, N, N], its rows summing to 1, and the number of images.

    Raises:
        VitcodError: if there is no image, or the model yields values that are not finite.
    """
    layers = attentions(model)
    shape = attention_shape(model)
    mine = None if max_images is None else len(range(distributed.rank(), max_images, distributed.world_size()))
    training = model.training
    model.eval()
    sums = torch.zeros(shape, dtype=torch.float64, device=runtime.device)
    try:
        for layer, layer_sum in zip(layers, sums, strict=True):
            layer.attention_sum = layer_sum
        images_seen = _show(model, loader, runtime, reporter, mine)
    finally:
        model.train(training)
        for layer in layers:
            layer.attention_sum = None
    count = torch.tensor(images_seen, dtype=torch.int64, device=runtime.device)
    num_images = int(distributed.all_reduce_sum(count))
    if num_images == 0:
        raise VitcodError("There is no image to average attention over; check --data-path and the split.")
    mean = (distributed.all_reduce_sum(sums) / num_images).float().cpu().numpy()
    _check_finite(mean)
    return mean, num_images


def _show(
    model: VisionTransformer,
    loader: Iterable[tuple[Tensor, Tensor]],
    runtime: Runtime,
    reporter: Reporter,
    limit: int | None,
) -> int:
    """Run ``model`` over at most ``limit`` images of ``loader``; returns how many there were."""
    total = getattr(loader, "num_images", None) or None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    seen = 0
    with reporter.progress("attention", total) as progress:
        for images, _ in loader:
            part = images if limit is None else images[: limit - seen]
            if not len(part):
                break
            with runtime.autocast():
                model(runtime.place(part))
            seen += len(part)
            progress.advance(len(part))
            if seen == limit:
                break
    return seen


def _check_finite(attention: NDArray[np.float32]) -> None:
    finite = np.isfinite(attention).all(axis=(1, 2, 3))
    if not finite.all():
        raise VitcodError(
            f"The attention of block {int(np.argmin(finite))} is not finite, so the weights or the images are "
            "broken, or --precision float16 overflows; try --precision float32, else another checkpoint."
        )
