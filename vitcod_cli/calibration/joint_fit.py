"""The fit of the first half of the blocks as one, behind their own fits, on views that no block was fitted to.

A block that is fitted by itself mends what it can of the errors in front of it, and knows nothing of what blocks
behind it could mend better. Here every step takes a random part of each image, mirrored by chance, through the
first half of the student, and through the teacher. The other half is fitted behind it, block after block, as ever:
a fit of late blocks as one brings nothing. Both are measured in docs/research.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

from vitcod_cli.calibration.fit import FORWARD_BATCH, Fit, Scope, between_steps, fitted_parameters
from vitcod_cli.calibration.objective import Objective, OutputLoss
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.passes import BlockPass, tokens_of
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.runtime import Runtime
from vitcod_cli.signals import StopRequest

LEAST_AREA = 0.4
"""The smallest part of an image that a step may see."""
_STATISTICS = 128
"""Views of each process that the scale of the errors is measured on."""


@dataclass(frozen=True)
class Way:
    """From images to the tokens behind some blocks.

    Attributes:
        model: that makes tokens of images.
        renormalise: images as the student takes them to those that ``model`` takes.
        passes: the blocks.
        compared: behind how many of them tokens are compared, ascending.
    """

    model: Transformer
    renormalise: Renormalise
    passes: Sequence[BlockPass]
    compared: Sequence[int]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """The tokens [B, N, C] that are compared, of ``images`` [B, C, H, W] as the student takes them."""
        tokens, found = tokens_of(self.model, self.renormalise(images)), []
        for depth, block in enumerate(self.passes, 1):
            tokens = block(tokens)
            if depth in self.compared:
                found.append(tokens)
        return found


@dataclass(kw_only=True)
class JointFit(Fit):
    """The first blocks of the student, fitted in place.

    Attributes:
        images: the calibration images of this process.
        student: through its first blocks, and then through those of the teacher.
        teacher: through its own.
        losses: of what is compared.
    """

    images: CalibrationImages
    student: Way
    teacher: Way
    losses: Sequence[OutputLoss]

    @classmethod
    def between(
        cls,
        student: Transformer,
        teacher: Transformer,
        images: CalibrationImages,
        objective: Objective,
        settings: CalibrationSettings,
        *,
        scope: Scope,
        runtime: Runtime,
        stop: StopRequest,
    ) -> JointFit:
        """The fit of ``student`` to ``teacher``; all processes call it together."""
        depth, blocks = objective.depth, objective.blocks
        early = depth.early(blocks)
        end = min(early + depth.ahead, blocks)
        own, others = objective.passes(student), objective.passes(teacher)
        compared = sorted({early, end})
        preprocess = preprocess_of(student)
        ways = [
            Way(model, Renormalise.for_model(model, preprocess).to(runtime.device), passes, compared)
            for model, passes in ((student, [*own[:early], *others[early:end]]), (teacher, others[:end]))
        ]
        samples = _samples(ways[1], images, runtime, stop)
        return cls(
            index=blocks,
            parameters=[p for block in student.blocks[:early] for p in fitted_parameters(block, scope)],
            peak=depth.joint_rate * settings.calibrate_lr,
            views=len(images),
            crops=images.crops,
            steps=settings.calibrate_joint_steps,
            settings=settings,
            runtime=runtime,
            stop=stop,
            images=images,
            student=ways[0],
            teacher=ways[1],
            losses=[
                objective.loss(behind - 1, target, runtime.device)
                for behind, target in zip(compared, samples, strict=True)
            ],
        )

    @property
    def block(self) -> None:
        """No block's."""

    @property
    def subject(self) -> str:
        """``the first blocks``."""
        return "the first blocks"

    def step_loss(self, sample: Tensor, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All errors together, and their mean, of a random view of each image."""
        del step
        loss = self._distance(random_views(self.images.tensor(sample), generator))
        return loss, loss / len(self.losses)

    def errors(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """All errors together, and their mean, of the images as they are."""
        loss = self._distance(self.images.tensor(sample))
        return loss, loss / len(self.losses)

    def _distance(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.teacher.outputs(images)
        outputs = self.student.outputs(images)
        errors = [
            loss(output, target.float())
            for loss, output, target in zip(self.losses, outputs, targets, strict=True)
        ]
        return torch.stack(errors).sum()


@torch.no_grad()
def _samples(way: Way, images: CalibrationImages, runtime: Runtime, stop: StopRequest) -> list[Tensor]:
    """What is compared, of some images: float32 [images, N, C] each."""
    parts = []
    with between_steps(stop):
        for part in torch.split(torch.arange(min(_STATISTICS, len(images))), FORWARD_BATCH):
            with runtime.autocast():
                parts.append([tokens.float() for tokens in way.outputs(images.tensor(part))])
    return [torch.cat(tokens) for tokens in zip(*parts, strict=True)]


def random_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Of each of ``images`` [B, C, H, W] a part of ``LEAST_AREA`` or more, scaled up; half are mirrored."""
    height, width = images.shape[-2:]
    views = []
    for image in images:
        area, down, right, mirrored = torch.rand(4, generator=generator).tolist()
        side = (LEAST_AREA + (1 - LEAST_AREA) * area) ** 0.5
        tall, wide = max(1, round(side * height)), max(1, round(side * width))
        top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
        view = resized_crop(image, top, left, tall, wide, [height, width], antialias=True)
        views.append(horizontal_flip(view) if mirrored < 0.5 else view)
    return torch.stack(views)
