"""What a mask is worth on this device, in plain words: arithmetic counted, time measured."""

from __future__ import annotations

from vitcod_cli.bench.counting import Counts
from vitcod_cli.bench.measure import Comparison, Measurement, Results
from vitcod_cli.bench.timing import Spread

NOTABLE = 0.03
"""Differences in time below this share are not called one."""


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
    saves, effect = _effect(forward.ratio)
    verdict = (
        f"The mask leaves out {_percent(counts.saved_attention_share)} of the attention products "
        f"({_percent(counts.saved_share)} of all arithmetic), {'and' if saves else 'but'} {effect} on this "
        f"device: {_times_text(forward, results)}."
    )
    for step in training:
        text = _times_text(step, results)
        verdict += f" {text[0].upper()}{text[1:]}: the mask {_effect(step.ratio)[1]}."
    return verdict


def _times_text(comparison: Comparison, results: Results) -> str:
    measured: dict[str, Measurement] = {
        one.model: one
        for one in results.measurements
        if (one.mode, one.batch_size) == (comparison.mode, comparison.batch_size)
    }
    masked, unmasked = next(iter(measured.values())), measured[comparison.against]
    images = "1 image" if comparison.batch_size == 1 else f"{comparison.batch_size} images"
    return (
        f"a {'forward pass' if comparison.mode == 'forward' else 'training step'} of {images} takes "
        f"{in_ms(masked.milliseconds.median)} ms with it and {in_ms(unmasked.milliseconds.median)} ms without "
        f"({times(comparison.ratio.median)})"
    )


def _effect(ratio: Spread) -> tuple[bool, str]:
    """Whether time is saved, and in words: where it is notable and the middle half of the pairs agrees."""
    if ratio.median < 1 - NOTABLE and ratio.upper < 1:
        return True, f"saves {_percent(1 - ratio.median)} of the time"
    if ratio.median > 1 + NOTABLE and ratio.lower > 1:
        return False, f"takes {_percent(ratio.median - 1)} more time"
    return False, "saves no time"


def in_ms(value: float) -> str:
    """Milliseconds to three digits, or to a hundredth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float) -> str:
    """``x1.05``."""
    return f"x{ratio:.2f}" if ratio >= 0.1 else f"x{ratio:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
