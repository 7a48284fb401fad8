"""Images normalised for one model, as another model expects them: a teacher may have a mean and std of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcod_cli.data.preprocess import Preprocess, preprocess_for
from vitcod_cli.data.settings import DataSettings


class Renormalise(nn.Module):
    """Takes images [B, C, H, W] from the mean and std of ``source`` to those of ``target``.

    That is ((x * std + mean) - mean') / std', as in timm's ``DistillationTeacher.normalize_input``.
    Where the two are equal nothing is computed: ``forward`` returns the tensor that it was given.
    """

    def __init__(self, source: Preprocess, target: Preprocess) -> None:
        super().__init__()
        mean, std, target_mean, target_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (source.mean, source.std, target.mean, target.std)
        )
        self.scale: Tensor
        self.shift: Tensor
        self.needed = (source.mean, source.std) != (target.mean, target.std)
        self.register_buffer("scale", (std / target_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - target_mean) / target_std).float(), persistent=False)

    @classmethod
    def for_model(cls, model: nn.Module, source: Preprocess) -> Renormalise:
        """To what timm's ``pretrained_cfg`` of ``model`` says; a model without one takes images as they are."""
        cfg = getattr(model, "pretrained_cfg", None)
        return cls(source, preprocess_for(cfg, source.input_size, DataSettings()) if cfg else source)

    def forward(self, images: Tensor) -> Tensor:
        """Float images of the one normalisation to the other."""
        return images * self.scale + self.shift if self.needed else images
