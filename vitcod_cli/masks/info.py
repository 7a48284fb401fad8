"""``--method info``, the paper's: the keys that hold most of a row's attention (HPCA 2023, section IV-A)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.method import DEFAULT_SPARSITY, MaskMethod
from vitcod_cli.masks.ranking import Attention, Keep, for_each_block, keep_largest
from vitcod_cli.settings import setting

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Info(MaskMethod):
    """Options of the method."""

    name = "info"

    sparsity: float | None = setting(
        None,
        "info: share of entries to prune; finds the --info-cut that gives it.",
        minimum=0,
        maximum=1,
        show_default=str(DEFAULT_SPARSITY),
    )
    info_cut: float | None = setting(
        None,
        "info: share of each row's attention to keep, instead of --sparsity.",
        minimum=0,
        maximum=1,
        show_default=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is not None and self.info_cut is not None:
            raise VitcodError("--sparsity and --info-cut exclude each other: --sparsity finds the cut; give one.")

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`info_mask` and :func:`info_mask_of_sparsity`."""
        if self.info_cut is not None:
            return info_mask(attention_map.attention, self.info_cut), {"info_cut": self.info_cut}
        sparsity = DEFAULT_SPARSITY if self.sparsity is None else self.sparsity
        keep, cut = info_mask_of_sparsity(attention_map.attention, sparsity, num_prefix_tokens)
        return keep, {"info_cut": cut}


def info_mask(attention: Attention, info_cut: float) -> Keep:
    """Per row, the largest keys whose sum reaches ``info_cut``, and one key more.

    The sum runs in float64 from the largest key down; a row that never reaches the cut (its sum
    falls short of 1 by rounding) keeps every key. The one key more is what the published code does.

    Args:
        attention: [..., N, N].
    """
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(block: Any) -> None:
        ascending, sums = _rank(attention[block])
        keep[block] = _keep_until(attention[block], ascending, sums, info_cut)

    for_each_block(fill, attention)
    return keep


def info_mask_of_sparsity(attention: Attention, sparsity: float, num_prefix_tokens: int) -> tuple[Keep, float]:
    """:func:`info_mask` at the cut with which, its prefix kept, it comes as near to ``sparsity`` as any can.

    Exact. Of all cuts that give the same mask, the one with the fewest decimals is taken.

    Args:
        attention: [L, H, N, N].
        sparsity: wanted share of pruned entries among all, 0 to 1.
        num_prefix_tokens: tokens whose rows and columns will be kept; they aren't yet.

    Returns:
        The mask [L, H, N, N], and the cut.

    Raises:
        VitcodError: if no cut between 0 and 1 gives this sparsity to two decimals.
    """
    ranked = _RankedMap(attention)
    cut = ranked.find_cut(sparsity, num_prefix_tokens)
    return ranked.keep_until(cut), cut


def _rank(rows: Attention) -> tuple[Attention, Numbers]:
    """``rows`` [..., N] sorted ascending, and their running sums: at index p of the p + 1 largest keys."""
    ascending = np.sort(rows, axis=-1)
    descending = ascending[..., ::-1].astype(np.float64)
    return ascending, np.cumsum(descending, axis=-1, out=descending)


def _keep_until(rows: Attention, ascending: Attention, sums: Numbers, info_cut: float) -> Keep:
    # The loop adds keys while the sum, 0 at first, is below the cut.
    added = int(info_cut > 0) + np.count_nonzero(sums[..., :-1] < info_cut, axis=-1)
    return keep_largest(rows, ascending, np.minimum(added + 1, rows.shape[-1]))


class _RankedMap:
    """A map with its rows ranked, to look for a cut and make the mask without ranking them twice.

    Of a row in descending order, the key that p others go before (p >= 1) is pruned if and only if
    the first p - 1 already reach the cut. Their sum, 0 for p = 1, is called the key's *step*: the
    sparsity changes at steps only, and a cut prunes the keys whose step is not below it.
    """

    def __init__(self, attention: Attention) -> None:
        """``attention``: [L, H, N, N]."""
        self._attention = attention
        self._ascending: list[Any] = [None] * len(attention)
        self._sums: list[Any] = [None] * len(attention)

        def fill(block: int) -> None:
            self._ascending[block], self._sums[block] = _rank(attention[block])

        for_each_block(fill, attention)

    def keep_until(self, info_cut: float) -> Keep:
        """:func:`info_mask` of the map."""
        keep = np.empty(self._attention.shape, dtype=np.bool_)

        def fill(block: int) -> None:
            rows, ascending, sums = self._attention[block], self._ascending[block], self._sums[block]
            keep[block] = _keep_until(rows, ascending, sums, info_cut)

        for_each_block(fill, self._attention)
        return keep

    def find_cut(self, sparsity: float, num_prefix_tokens: int) -> float:
        """The cut of :func:`info_mask_of_sparsity`."""
        steps = [sums[:, num_prefix_tokens:, :-2] for sums in self._sums]
        spared = self._steps_of_the_prefix(num_prefix_tokens)
        wanted = sparsity * self._attention.size
        low, high = _bracket(steps, wanted)
        cuts, pruned = self._outcomes(steps, spared, low, high)
        if not _is_inside(pruned, wanted):
            cuts, pruned = self._outcomes(steps, spared, -np.inf, np.inf)
            self._check_range(sparsity, float(pruned[-1]), float(pruned[0]))
        best = int(np.abs(pruned - wanted).argmin())
        return _short_decimal(float(cuts[best - 1]) if best else -1.0, float(cuts[best]))

    def _steps_of_the_prefix(self, num_prefix_tokens: int) -> Numbers:
        """The steps of the keys in the prefix columns, which stay whatever the cut: flat."""
        steps = [np.empty(0)]
        num_keys = self._attention.shape[-1]
        for rows, sums in zip(self._attention, self._sums, strict=True):
            patches, patch_sums = rows[:, num_prefix_tokens:], sums[:, num_prefix_tokens:]
            for column in range(num_prefix_tokens):
                value = patches[..., column, None]
                rank = np.count_nonzero(patches < value, axis=-1)
                rank += np.count_nonzero(patches[..., :column] == value, axis=-1)
                before = (num_keys - 1 - rank)[..., None]
                step = np.take_along_axis(patch_sums, np.maximum(before - 2, 0), axis=-1)
                steps.append(np.where(before > 1, step, 0.0)[before > 0])
        return np.concatenate(steps)

    def _outcomes(
        self, steps: list[Numbers], spared: Numbers, low: float, high: float
    ) -> tuple[Numbers, NDArray[np.int64]]:
        """The steps from ``low`` to below ``high``, ascending, and how many entries a cut at each prunes."""
        above = -np.count_nonzero(spared >= high)
        inside = []
        for block in steps:
            below = block[block < high]
            above += block.size - below.size
            inside.append(below[below >= low])
            # The keys that one other goes before.
            if low <= 0 and self._attention.shape[-1] > 1:
                inside.append(np.zeros(block.shape[0] * block.shape[1]))
        cuts, counts = np.unique(np.concatenate(inside), return_counts=True)
        spared = spared[(spared >= low) & (spared < high)]
        np.subtract.at(counts, np.searchsorted(cuts, spared), 1)
        pruned = above + counts[::-1].cumsum()[::-1]
        if high <= 1:
            return cuts, pruned
        # No cut is above 1, and a sum may be by rounding.
        at_one = np.searchsorted(cuts, 1.0)
        rest = pruned[at_one] if at_one < len(cuts) else above
        return np.append(cuts[:at_one], 1.0), np.append(pruned[:at_one], rest)

    def _check_range(self, sparsity: float, fewest: float, most: float) -> None:
        least, largest = fewest / self._attention.size, most / self._attention.size
        if not least - 0.005 <= sparsity <= largest + 0.005:
            raise VitcodError(
                f"--sparsity {sparsity:g} can't be reached by the info method on this map, only {least:.4f} to "
                f"{largest:.4f} (a key of every row and all prefix tokens are kept); choose one in this range."
            )


def _bracket(steps: list[Numbers], wanted: float) -> tuple[float, float]:
    """Bounds that the ``wanted``-th largest step most likely lies between, from a sample of the rows."""
    size = sum(block.size for block in steps)
    if size < 100_000:
        return -np.inf, np.inf
    sample = np.concatenate([block.reshape(-1, block.shape[-1])[::16].ravel() for block in steps])
    index = round(sample.size * (1 - wanted / size))
    margin = sample.size // 100
    below, above = index - margin, index + margin
    inner = [bound for bound in (below, above) if 0 <= bound < sample.size]
    sample.partition(inner)
    low = sample[below] if below in inner else -np.inf
    high = sample[above] if above in inner else np.inf
    return low, high if high <= 1 else np.inf


def _is_inside(pruned: NDArray[np.int64], wanted: float) -> bool:
    """Whether the nearest to ``wanted`` has neighbours on both sides, so that none outside can be nearer."""
    return len(pruned) > 2 and 0 < np.abs(pruned - wanted).argmin() < len(pruned) - 1


def _short_decimal(low: float, high: float) -> float:
    """The number with the fewest decimals in the interval that excludes ``low`` and includes ``high``."""
    for digits in range(1, 18):
        candidate = math.floor(high * 10.0**digits) / 10.0**digits
        if low < candidate <= high:
            return candidate
    return high
