"""What a mask is worth on this device, in plain words: arithmetic counted, time measured."""

from __future__ import annotations

from typing import Literal

from vitcod_cli.bench.counting import Counts
from vitcod_cli.bench.measure import Comparison, Measurement, Results

NOTABLE = 0.03
"""Differences in time below this share are not called one."""
FEWEST = 4
"""Pairs; the middle half of fewer says nothing of how far they scatter."""

Standing = Literal["faster", "slower", "the same", "too noisy"]


def standing(comparison: Comparison, results: Results) -> Standing:
    """What a comparison shows: nothing, where the middle half of its pairs spans more than one answer.

    Neither does it where there are too few pairs, or the two medians, which are shown beside it, each by
    itself say something else.
    """
    ratio = comparison.ratio
    own, other = _medians(comparison, results)
    apart = not ratio.lower - NOTABLE <= own / other <= ratio.upper + NOTABLE
    if comparison.pairs < FEWEST or apart:
        return "too noisy"
    if ratio.median < 1 - NOTABLE and ratio.upper < 1 and own < other:
        return "faster"
    if ratio.median > 1 + NOTABLE and ratio.lower > 1 and own > other:
        return "slower"
    within = ratio.lower >= 1 - NOTABLE and ratio.upper <= 1 + NOTABLE
    return "the same" if within else "too noisy"


def mask_verdict(counts: Counts, results: Results, unmasked: str) -> str | None:
    """What the mask does to the time, at the largest batch of each mode that could be compared.

    Args:
        counts: of the model with its mask.
        unmasked: the name in ``results`` of the same model without the mask.

    Returns:
        A sentence or two; None when nothing was compared.
    """
    comparisons = [one for one in results.comparisons if one.against == unmasked]
    if not comparisons:
        return None
    forward, *training = (
        max((one for one in comparisons if one.mode == mode), key=lambda one: one.batch_size)
        for mode in dict.fromkeys(one.mode for one in comparisons)
    )
    word = "and" if standing(forward, results) == "faster" else "but"
    verdict = (
        f"The mask leaves out {percent(counts.saved_attention_share)} of the attention products "
        f"({percent(counts.saved_share)} of all arithmetic), {word} {_effect(forward, results)} on this "
        f"device: {_times_text(forward, results)}."
    )
    for step in training:
        text = _times_text(step, results)
        verdict += f" {text[0].upper()}{text[1:]}: the mask {_effect(step, results)}."
    return verdict


def _medians(comparison: Comparison, results: Results) -> tuple[float, float]:
    """Milliseconds of the first model and of the one compared with."""
    measured: dict[str, Measurement] = {
        one.model: one
        for one in results.measurements
        if (one.mode, one.batch_size) == (comparison.mode, comparison.batch_size)
    }
    first, other = next(iter(measured.values())), measured[comparison.against]
    return first.milliseconds.median, other.milliseconds.median


def _times_text(comparison: Comparison, results: Results) -> str:
    masked, unmasked = _medians(comparison, results)
    images = "1 image" if comparison.batch_size == 1 else f"{comparison.batch_size} images"
    ratio = comparison.ratio
    noisy = standing(comparison, results) == "too noisy"
    spread = f"{times(ratio.lower)} to {times(ratio.upper)} in pairs" if noisy else times(ratio.median)
    return (
        f"a {'forward pass' if comparison.mode == 'forward' else 'training step'} of {images} takes "
        f"{in_ms(masked)} ms with it and {in_ms(unmasked)} ms without ({spread})"
    )


def _effect(comparison: Comparison, results: Results) -> str:
    """What a mask does to the time, in words."""
    median = comparison.ratio.median
    return {
        "faster": f"saves {percent(1 - median)} of the time",
        "slower": f"takes {percent(median - 1)} more time",
        "the same": "saves no time",
        "too noisy": "whether it saves time is too noisy to tell",
    }[standing(comparison, results)]


def in_ms(value: float) -> str:
    """Milliseconds to three digits, or to a hundredth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float) -> str:
    """``x1.05``."""
    return f"x{ratio:.2f}" if ratio >= 0.1 else f"x{ratio:.2g}"


def percent(share: float) -> str:
    """``12.3 %``."""
    return f"{100 * share:.1f} %"
