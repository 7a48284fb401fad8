"""What is minimised: DeiT's choice of task loss, its distillation, and the reconstruction loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.training.recipe import Recipe

Outputs = Tensor | tuple[Tensor, Tensor]
"""Logits [B, classes], or those of the class head and the distillation head."""


class Losses(NamedTuple):
    """The loss of one batch, and what it is made of; scalars, means over the batch's images."""

    total: Tensor
    task: Tensor
    recon: Tensor


def make_mixup(augmentation: AugmentationSettings, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix, or None where they are off."""
    if not augmentation.mixes:
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        prob=augmentation.mixup_prob,
        switch_prob=augmentation.mixup_switch_prob,
        mode=augmentation.mixup_mode,
        label_smoothing=augmentation.smoothing,
        num_classes=num_classes,
    )


class Criterion:
    """Loss of a batch from the model's outputs.

    ``total = task + recon_weight * recon``. The task loss is cross-entropy against mixed labels
    (which carry the smoothing), smoothed labels or plain ones; with ``--distill``, DeiT's
    ``(1 - alpha) * task + alpha * distillation``; without labels, the divergence from the teacher.
    """

    def __init__(self, recipe: Recipe, augmentation: AugmentationSettings, teacher: nn.Module | None) -> None:
        self.recipe = recipe
        self.teacher = None if recipe.distill == "none" and recipe.uses_labels else teacher
        self.task: Callable[[Tensor, Tensor], Tensor]
        if augmentation.mixes:
            self.task = SoftTargetCrossEntropy()  # type: ignore[no-untyped-call]
        elif augmentation.smoothing:
            self.task = LabelSmoothingCrossEntropy(augmentation.smoothing)  # type: ignore[no-untyped-call]
        else:
            self.task = nn.CrossEntropyLoss()

    def teacher_logits(self, images: Tensor) -> Tensor | None:
        """The teacher's logits [B, classes] for a batch (mixed, as the student sees it), or None."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            logits: Tensor = self.teacher(images)
        return logits

    def __call__(self, outputs: Outputs, targets: Tensor, recon: Tensor, teacher_logits: Tensor | None) -> Losses:
        """The losses of a batch.

        Args:
            outputs: the model's logits, of two heads for a distilled model.
            targets: int64 [B], or [B, classes] after mixup.
            recon: the summed reconstruction losses of all blocks, a scalar.
            teacher_logits: the teacher's logits [B, classes], or None.
        """
        # In float32 whatever the model ran in: a cross-entropy in half precision loses its digits.
        if isinstance(outputs, tuple):
            student, distilled = outputs[0].float(), outputs[1].float()
        else:
            student = distilled = outputs.float()
        if teacher_logits is None:
            task = self.task(student, targets)
        elif not self.recipe.uses_labels:
            heads = {id(head): head for head in (student, distilled)}.values()
            divergences = [self._divergence(head, teacher_logits) / len(targets) for head in heads]
            task = sum(divergences, student.new_zeros(())) / len(heads)
        else:
            alpha = self.recipe.distill_alpha
            task = (1 - alpha) * self.task(student, targets) + alpha * self._distillation(
                distilled, teacher_logits
            )
        recon = recon.float()
        return Losses(task + self.recipe.recon_weight * recon, task, recon)

    def _distillation(self, distilled: Tensor, teacher_logits: Tensor) -> Tensor:
        if self.recipe.distill == "hard":
            return F.cross_entropy(distilled, teacher_logits.argmax(dim=1))
        # DeiT divides by the number of entries, not of images.
        return self._divergence(distilled, teacher_logits) / distilled.numel()

    def _divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """tau^2 * KL(teacher || student) at temperature tau, summed over the batch."""
        tau = self.recipe.distill_tau
        target, predicted = (F.log_softmax(x.float() / tau, dim=1) for x in (teacher_logits, logits))
        return F.kl_div(predicted, target, reduction="sum", log_target=True) * tau**2
