"""The loss of a batch, against formulas written out."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.training.losses import Criterion, make_mixup
from vitcod_cli.training.recipe import Recipe

BATCH, CLASSES = 6, 5
PLAIN = AugmentationSettings(no_aug=True, smoothing=0.0)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


TARGETS = torch.tensor([0, 1, 2, 3, 4, 0])
TEACHER_LOGITS = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(1))


def probabilities(logits: Tensor, tau: float = 1.0) -> Tensor:
    powers = (logits.double() / tau).exp()
    return powers / powers.sum(dim=1, keepdim=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """``targets``: a distribution over the classes for each image."""
    return -(targets.double() * probabilities(logits).log()).sum(dim=1).mean().item()


def divergence(logits: Tensor, tau: float) -> float:
    """tau^2 KL(teacher || student), summed over the batch."""
    p, q = probabilities(TEACHER_LOGITS, tau), probabilities(logits, tau)
    return tau**2 * (p * (p / q).log()).sum().item()


class Found(NamedTuple):
    total: float
    task: float
    dtype: torch.dtype


def loss(
    outputs: Any, targets: Tensor = TARGETS, augmentation: AugmentationSettings = PLAIN, **recipe: Any
) -> Found:
    criterion = Criterion(Recipe(**recipe), augmentation, teacher=nn.Identity())
    teacher_logits = TEACHER_LOGITS if criterion.teacher is not None else None
    losses = criterion(outputs, targets, torch.tensor(7.0), teacher_logits)
    return Found(losses.total.item(), losses.task.item(), losses.total.dtype)


def one_hot(smoothing: float = 0.0) -> Tensor:
    return torch.eye(CLASSES)[TARGETS] * (1 - smoothing) + smoothing / CLASSES


def test_plain_labels(logits: Tensor) -> None:
    assert loss(logits).task == pytest.approx(cross_entropy(logits, one_hot()))


def test_smoothed_labels(logits: Tensor) -> None:
    augmentation = AugmentationSettings(no_aug=True, smoothing=0.1)
    assert loss(logits, augmentation=augmentation).task == pytest.approx(cross_entropy(logits, one_hot(0.1)))


def test_mixed_labels_bring_their_own_smoothing(logits: Tensor) -> None:
    mixed = 0.3 * one_hot() + 0.7 * one_hot().flip(0)
    found = loss(logits, mixed, AugmentationSettings(smoothing=0.1))
    assert found.task == pytest.approx(cross_entropy(logits, mixed))


def test_mixup_mixes_images_and_smoothed_labels_alike() -> None:
    mixup = make_mixup(AugmentationSettings(cutmix=0.0), CLASSES)
    assert mixup is not None
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4).clone()
    mixed, targets = mixup(images, TARGETS)
    share = (mixed[0, 0, 0, 0] - 5) / (0 - 5)  # of the first image, mixed with the last
    expected = share * one_hot(0.1) + (1 - share) * one_hot(0.1).flip(0)
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("fields", [{"mixup": 0.0, "cutmix": 0.0}, {"mixup_prob": 0.0}, {"no_aug": True}])
def test_mixup_can_be_turned_off(fields: dict[str, Any]) -> None:
    assert make_mixup(AugmentationSettings(**fields), CLASSES) is None


def test_reconstruction_loss_is_weighed(logits: Tensor) -> None:
    found = loss(logits)
    assert found.total == pytest.approx(found.task + 1e-4 * 7.0)
    assert loss(logits, recon_weight=0.0).total == found.task


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_deits(logits: Tensor, tau: float) -> None:
    found = loss(logits, distill="soft", teacher="x", distill_alpha=0.3, distill_tau=tau)
    base = cross_entropy(logits, one_hot())
    assert found.task == pytest.approx(0.7 * base + 0.3 * divergence(logits, tau) / (BATCH * CLASSES), rel=1e-5)


def test_hard_distillation_is_deits(logits: Tensor) -> None:
    found = loss(logits, distill="hard", teacher="x", distill_alpha=0.3)
    chosen = torch.eye(CLASSES)[TEACHER_LOGITS.argmax(dim=1)]
    assert found.task == pytest.approx(
        0.7 * cross_entropy(logits, one_hot()) + 0.3 * cross_entropy(logits, chosen)
    )


def test_two_heads_learn_from_labels_and_teacher(logits: Tensor) -> None:
    found = loss((logits, 2 * logits), distill="hard", teacher="x")
    chosen = torch.eye(CLASSES)[TEACHER_LOGITS.argmax(dim=1)]
    expected = (cross_entropy(logits, one_hot()) + cross_entropy(2 * logits, chosen)) / 2
    assert found.task == pytest.approx(expected)


@pytest.mark.parametrize("recipe", [{"distill_from": "x"}, {"labels": False, "teacher": "x"}])
def test_distillation_alone_ignores_the_labels(logits: Tensor, recipe: dict[str, Any]) -> None:
    found = loss(logits, torch.zeros_like(TARGETS), distill_tau=2.0, **recipe)
    assert found.task == pytest.approx(divergence(logits, 2.0) / BATCH, rel=1e-5)
    two = loss((logits, 2 * logits), distill_tau=2.0, **recipe)
    expected = (divergence(logits, 2.0) + divergence(2 * logits, 2.0)) / 2 / BATCH
    assert two.task == pytest.approx(expected, rel=1e-5)


def test_a_perfect_student_has_no_divergence() -> None:
    assert abs(loss(TEACHER_LOGITS, distill_from="x").task) < 1e-6


def test_half_precision_outputs_lose_no_more_digits(logits: Tensor) -> None:
    half = logits.bfloat16()
    assert loss(half).dtype == torch.float32
    assert loss(half).task == pytest.approx(cross_entropy(half.float(), one_hot()), rel=1e-6)


def test_an_unused_teacher_is_not_asked() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    criterion = Criterion(Recipe(), PLAIN, teacher=never)  # type: ignore[arg-type]
    assert criterion.teacher_logits(torch.zeros(1)) is None
