"""Counting, in one process; two processes are in test_processes.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.accuracy import Evaluation, evaluate
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import RuntimeSettings, start


class Lookup(nn.Module):
    """Answers with fixed logits; an image's first pixel is its number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.logits[images[:, 0, 0, 0].long()]


def run(logits: Tensor, targets: Tensor, batch: int = 4) -> Evaluation:
    images = torch.arange(float(len(targets))).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    batches = list(zip(images.split(batch), targets.split(batch), strict=True))
    with start(RuntimeSettings(device="cpu")) as runtime:
        model = Lookup(logits).train()
        found = evaluate(model, batches, runtime, SilentReporter())
        assert model.training
        return found


@pytest.mark.parametrize("batch", [1, 4, 13])
def test_every_image_counts_once(batch: int) -> None:
    """13 images in batches of 4: a mean of batch means would weigh the last one too much."""
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(13, 9, generator=generator), torch.randint(0, 9, (13,), generator=generator)
    ranks = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    found = run(logits, targets, batch)
    assert found.images == 13
    assert found.acc1 == pytest.approx(100 * (ranks < 1).double().mean().item())
    assert found.acc5 == pytest.approx(100 * (ranks < 5).double().mean().item())
    log_probabilities = logits.double().log_softmax(dim=1)
    assert found.loss == pytest.approx(-log_probabilities.gather(1, targets[:, None]).mean().item(), rel=1e-6)


def test_three_classes_have_no_first_five() -> None:
    found = run(torch.eye(3), torch.tensor([0, 0, 1]))
    assert (found.acc1, found.acc5) == (pytest.approx(100 / 3), 100.0)


def test_nothing_to_count() -> None:
    """0 % of no image would look like a result."""
    with start(RuntimeSettings(device="cpu")) as runtime, pytest.raises(VitcodError, match="no image to evaluate"):
        evaluate(Lookup(torch.eye(3)), [], runtime, SilentReporter())


def test_line_is_the_published_one() -> None:
    line = Evaluation(81.57599, 95.2141, 0.85449, 50000).line()
    assert line == "* Acc@1 81.576 Acc@5 95.214 loss 0.854"
