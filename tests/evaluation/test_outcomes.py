"""Several models on the same images: the same figures as one by one, and images in one order for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.accuracy import evaluate
from vitcod_cli.evaluation.outcomes import LabelledBy, Outcomes, compare
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import RuntimeSettings, start

IMAGES, CLASSES = 13, 9


class Lookup(nn.Module):
    """Answers with fixed logits; an image's first pixel is its number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def logits_of(seed: int) -> Tensor:
    return torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(seed))


def batches(targets: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    images = torch.arange(float(len(targets))).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return list(zip(images.split(size), targets.split(size), strict=True))


def run(*logits: Tensor, labelled: bool = True, targets: Tensor | None = None) -> list[Outcomes]:
    targets = torch.arange(IMAGES) % CLASSES if targets is None else targets
    with start(RuntimeSettings(device="cpu")) as runtime:
        models = [Lookup(part).eval() for part in logits]
        return compare(models, batches(targets), runtime, SilentReporter(), labelled=labelled)


def test_each_model_has_the_figures_that_it_has_alone() -> None:
    targets = torch.arange(IMAGES) % CLASSES
    logits = [logits_of(seed) for seed in range(3)]
    with start(RuntimeSettings(device="cpu")) as runtime:
        for outcomes, own in zip(run(*logits), logits, strict=True):
            alone = evaluate(Lookup(own), batches(targets), runtime, SilentReporter())
            assert outcomes.evaluation.to_dict() == pytest.approx(alone.to_dict(), rel=1e-12)


def test_agreement_and_divergence_by_their_definition() -> None:
    first, second = logits_of(0), logits_of(1)
    reference, other = run(first, second)
    assert reference.agreement == 100
    assert reference.kl == 0
    p, q = first.double().softmax(dim=1), second.double().softmax(dim=1)
    assert other.divergence == pytest.approx((p * (p / q).log()).sum(dim=1).numpy(), rel=1e-6)
    assert other.agrees.tolist() == (first.argmax(dim=1) == second.argmax(dim=1)).tolist()


def test_without_labels_the_reference_gives_them() -> None:
    """Labels are -1 there; the second model's accuracy is its agreement."""
    reference, other = run(logits_of(0), logits_of(1), labelled=False, targets=torch.full((IMAGES,), -1))
    assert reference.evaluation.acc1 == 100
    assert other.evaluation.acc1 == other.agreement < 100
    assert np.array_equal(other.hit1, other.agrees)


def test_a_loader_labelled_by_a_model_gives_the_same() -> None:
    nothing = torch.full((IMAGES,), -1)
    with start(RuntimeSettings(device="cpu")) as runtime:
        loader = LabelledBy(batches(nothing), Lookup(logits_of(0)), runtime)
        found = evaluate(Lookup(logits_of(1)), loader, runtime, SilentReporter())
    (_, other) = run(logits_of(0), logits_of(1), labelled=False, targets=nothing)
    assert found.to_dict() == pytest.approx(other.evaluation.to_dict(), rel=1e-12)


def test_nothing_to_compare_on() -> None:
    with start(RuntimeSettings(device="cpu")) as runtime, pytest.raises(VitcodError, match="no image to evaluate"):
        compare([Lookup(torch.eye(3))], [], runtime, SilentReporter())
