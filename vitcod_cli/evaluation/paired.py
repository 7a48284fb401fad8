"""Whether a difference between two models on the same images is more than chance. numpy only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054
"""Half a 95 % interval of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class PairedDifference:
    """How much better a model is than the reference, on the same images.

    Attributes:
        points: difference of Acc@1, in percentage points; negative where the model is worse.
        low, high: its 95 % interval.
        p: probability of a difference this large if neither model were better: McNemar's exact test.
        gained, lost: images that only the model, and only the reference, has right.
        loss: difference of the mean loss, in nats; positive where the model is worse.
        loss_low, loss_high: its 95 % interval.
    """

    points: float
    low: float
    high: float
    p: float
    gained: int
    lost: int
    loss: float
    loss_low: float
    loss_high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"

    @property
    def probability(self) -> str:
        """``p`` in three decimals."""
        return f"{self.p:.3f}" if self.p >= 0.0005 else "<0.001"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, by attribute."""
        return asdict(self)


def paired_difference(
    hits: NDArray[np.bool_],
    reference_hits: NDArray[np.bool_],
    losses: NDArray[np.float64],
    reference_losses: NDArray[np.float64],
) -> PairedDifference:
    """Compare a model with the reference: right or wrong [images], and losses [images], in the same order.

    The interval of the accuracy is that of Agresti and Min (2005, "Simple improved confidence intervals for
    comparing matched proportions"): half an image is added to each of the four kinds of pairs, so that few
    images, or no pair that differs, don't make it empty. That of the loss is of a mean of differences.
    """
    count = len(hits)
    gained, lost = int((hits & ~reference_hits).sum()), int((~hits & reference_hits).sum())
    shift = (gained - lost) / (count + 2)
    spread = math.sqrt(max((gained + lost + 1) / (count + 2) - shift**2, 0) / (count + 2))
    differences = losses - reference_losses
    loss_low, loss_high = mean_interval(differences)
    return PairedDifference(
        points=100 * (gained - lost) / count,
        low=100 * max(shift - _Z * spread, -1.0),
        high=100 * min(shift + _Z * spread, 1.0),
        p=mcnemar(gained, lost),
        gained=gained,
        lost=lost,
        loss=float(differences.mean()),
        loss_low=loss_low,
        loss_high=loss_high,
    )


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a mean of one figure an image [images]; without bounds for one image alone."""
    mean, count = float(values.mean()), len(values)
    half = _Z * float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return mean - half, mean + half


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value: of ``gained + lost`` fair coins, a split at least as uneven as this."""
    pairs, fewer = gained + lost, min(gained, lost)
    logs = [
        math.lgamma(pairs + 1) - math.lgamma(k + 1) - math.lgamma(pairs - k + 1) - pairs * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def accuracy_interval(acc1: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy in percent on so many images (Wilson 1927)."""
    share, weight = acc1 / 100, _Z**2 / images
    centre = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / images + weight / (4 * images)) / (1 + weight)
    return 100 * max(centre - half, 0.0), 100 * min(centre + half, 1.0)
