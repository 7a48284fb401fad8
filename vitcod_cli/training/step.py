"""One optimizer step: forward, backward, agreement of the processes, update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.runtime import Runtime, seed_everything
from vitcod_cli.signals import StopRequest
from vitcod_cli.training.losses import Criterion, Losses
from vitcod_cli.training.network import without_sync
from vitcod_cli.training.recipe import Recipe
from vitcod_cli.training.trained import Trained

Batch = tuple[Tensor, Tensor, Tensor]
"""Images [B, C, H, W], targets int64 [B], indices int64 [B]."""


@dataclass(frozen=True)
class Outcome:
    """What the processes agreed on in a step.

    Attributes:
        sums: over the global batch, images x (total, task, reconstruction loss), and images.
        finite: whether the loss was, everywhere; if not, the weights are as before.
        finite_here: whether it was on this process.
        interrupted, terminated: whether any process got a Ctrl-C, a SIGTERM (or its announcement).
    """

    sums: list[float]
    finite: bool
    finite_here: bool
    interrupted: bool
    terminated: bool

    @property
    def loss(self) -> float:
        """Mean over the global batch."""
        return self.sums[0] / max(self.sums[3], 1.0)


@dataclass
class Stepper:
    """Takes optimizer steps on ``trained``.

    Attributes:
        network: the model with its reconstruction loss, averaging gradients over processes.
    """

    network: nn.Module
    trained: Trained
    criterion: Criterion
    mixup: Mixup | None
    recipe: Recipe
    runtime: Runtime
    stop: StopRequest

    def __call__(self, batches: Iterable[Batch], epoch: int, step: int) -> Outcome:
        """Step ``step`` of ``epoch`` over ``accumulate_steps`` batches of this process."""
        parts = self.recipe.accumulate_steps
        agreement = _Agreement(self.runtime)
        for part, (images, targets, _) in enumerate(batches):
            # Whatever is drawn from here on depends on nothing but its epoch, step and rank.
            seed_everything(self.runtime.settings.seed, epoch, step * parts + part, distributed.rank())
            last = part == parts - 1
            with without_sync(self.network, skip=not last):
                losses = self._forward(images, targets)
                agreement.add(losses, len(targets))
                if last:
                    # Sent off before the backward pass, so that a GPU has work while we wait for it.
                    agreement.send(self.stop)
                self.trained.scaler.scale(losses.total / parts).backward()  # type: ignore[no-untyped-call]
        outcome = agreement.receive()
        if outcome.finite:
            self._update()
        self.trained.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _forward(self, images: Tensor, targets: Tensor) -> Losses:
        images = self.runtime.to_device(images)
        if self.mixup is not None:
            # Images without labels have -1, which can't be mixed; their loss asks for none.
            images, targets = self.mixup(images, targets if self.recipe.uses_labels else targets.clamp(min=0))
        with self.runtime.autocast():
            teacher_logits = self.criterion.teacher_logits(images)
            outputs, recon = self.network(images)
            return self.criterion(outputs, targets, recon, teacher_logits)

    def _update(self) -> None:
        optimizer, scaler = self.trained.optimizer, self.trained.scaler
        if self.recipe.clip_grad is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.trained.model.parameters(), self.recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if self.trained.ema is not None:
            self.trained.ema.update(self.trained.model)


class _Agreement:
    """Losses and stop requests of all processes, added up on the device, on their way to the CPU."""

    def __init__(self, runtime: Runtime) -> None:
        self._cuda = runtime.device.type == "cuda"
        self._sums = torch.zeros(4, dtype=torch.float64, device=runtime.device if self._cuda else "cpu")

    def add(self, losses: Losses, count: int) -> None:
        """Count the losses of a batch of ``count`` images."""
        total, task, recon = (loss.detach() for loss in losses)
        self._sums += torch.stack([total, task, recon, torch.ones_like(total)]).to(self._sums.device) * count

    def send(self, stop: StopRequest) -> None:
        """Add up over the processes and send to the CPU, without waiting."""
        bad = (~torch.isfinite(self._sums[:1])).double()
        signals = self._sums.new_tensor([stop.interrupted, stop.terminated])
        mine = torch.cat([bad, signals, self._sums])
        both = torch.stack([distributed.all_reduce_sum(mine.clone()), mine])
        self._host = both
        if self._cuda:
            self._host = torch.empty_like(both, device="cpu", pin_memory=True)
            self._host.copy_(both, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def receive(self) -> Outcome:
        """Wait for the sums."""
        if self._cuda:
            self._arrived.synchronize()
        (bad, interrupted, terminated, *sums), mine = self._host.tolist()
        return Outcome(sums, bad == 0, mine[0] == 0, interrupted > 0, terminated > 0)
