"""An attention map of images in memory, with the importance of its entries where it is wanted."""

from __future__ import annotations

import torch

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.artifacts.scratch import Scratch
from vitcod_cli.attention.collect import IMAGES, collect_attention
from vitcod_cli.attention.importance import collect_importance
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.model.families import Transformer
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime


def measure_map(
    model: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    reporter: Reporter,
    *,
    importance: bool,
    late_weight: float = 1.0,
    scratch: Scratch | None = None,
) -> AttentionMap:
    """Attention and, where it is asked for, importance, both of the same images.

    Args:
        model: on the runtime's device; faster with folded auto-encoders.
        late_weight: of the importance, see :func:`~vitcod_cli.attention.importance.block_weights`.
        scratch: where both are made; None: in memory.

    Raises:
        VitcodError: if there is no image, or the model yields values that are not finite.
    """
    batches = [(batch, torch.zeros(len(batch))) for batch in images.batches(IMAGES)]
    attention, count = collect_attention(model, batches, runtime, reporter, scratch=scratch)
    worth = None
    if importance:
        worth = collect_importance(model, images, runtime, reporter, late_weight=late_weight, scratch=scratch)
    return AttentionMap(attention, count, {"num_prefix_tokens": model.num_prefix_tokens}, worth)
