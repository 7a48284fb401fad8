"""What a model makes of an image before it chooses: one pooled feature, and one of each patch."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor, nn


class Features(NamedTuple):
    """Of a batch.

    Attributes:
        pooled: [B, C], what the head reads, or would read.
        patches: [B, P, C], the tokens of the patches behind the last norm, prefix tokens left out; None where only
            the pooled feature is known.
    """

    pooled: Tensor
    patches: Tensor | None


class FeatureExtractor(nn.Module):
    """Images [B, C, H, W] to the :class:`Features` of ``model``.

    Args:
        model: of timm, with a head or without one; of anything else the output is the pooled feature.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Features:
        """See :class:`Features`; all rows of the last block are computed."""
        if not hasattr(self.model, "forward_features"):
            return Features(self.model(images), None)
        model = cast(Any, self.model)
        tokens = model.forward_features(images)
        pooled = model.forward_head(tokens, pre_logits=model.num_classes > 0)
        return Features(pooled, tokens[:, model.num_prefix_tokens :])
