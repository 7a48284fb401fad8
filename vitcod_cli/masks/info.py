"""``--method info``, the paper's: the keys that hold most of a row's attention (HPCA 2023, section IV-A)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.masks.method import DEFAULT_SPARSITY, Exact, SparsityError
from vitcod_cli.masks.ranking import Attention, Keep, Part, for_each_part, keep_largest, map_parts
from vitcod_cli.settings import setting

Numbers = NDArray[np.float64]

FEW = 2**20
"""Steps that the search for a cut may hold at once."""

_DIGITS = 12
"""Binary digits of a step that the search learns in a pass; 4,096 cells, whose counts fit in the cache."""

_MANTISSA = 52
"""Cells of so many digits can't be divided: one of 0.5 to 1 holds two numbers of float64 at most."""


class _Bracket(NamedTuple):
    """Steps from ``low`` to below ``high``, and how many that change the sparsity are ``above``."""

    low: float
    high: float
    above: int


@dataclass(frozen=True, kw_only=True)
class Info(Exact):
    """Options of the method."""

    name, own_option, finds = "info", "info_cut", "cut"

    info_cut: float | None = setting(
        None,
        "info: share of each row's attention to keep, instead of --sparsity.",
        minimum=0,
        maximum=1,
        show_default=False,
    )

    @property
    def wanted(self) -> float | None:
        """See :class:`~vitcod_cli.masks.method.MaskMethod`."""
        if self.info_cut is not None:
            return None
        return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """See :func:`info_mask` and :func:`info_mask_of_sparsity`."""
        if self.info_cut is not None:
            return info_mask(attention_map.attention, self.info_cut), {"info_cut": self.info_cut}
        assert self.wanted is not None
        keep, cut = info_mask_of_sparsity(attention_map.attention, self.wanted, num_prefix_tokens)
        return keep, {"info_cut": cut}


def info_mask(attention: Attention, info_cut: float) -> Keep:
    """Per row, the largest keys whose sum reaches ``info_cut``, and one key more.

    The sum runs in float64 from the largest key down; a row that never reaches the cut (its sum
    falls short of 1 by rounding) keeps every key. The one key more is what the published code does.

    Args:
        attention: [..., N, N].
    """
    keep = np.empty(attention.shape, dtype=np.bool_)

    def fill(part: Part) -> None:
        rows = attention[part]
        ascending, sums = _rank(rows)
        # The published loop adds keys while their sum is below the cut.
        added = np.count_nonzero(sums < info_cut, axis=-1)
        keep[part] = keep_largest(rows, ascending, np.minimum(added + 1, rows.shape[-1]))

    for_each_part(fill, attention)
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
    cut = _CutSearch(attention, num_prefix_tokens).find(sparsity)
    return info_mask(attention, cut), cut


def _rank(rows: Attention) -> tuple[Attention, Numbers]:
    """``rows`` [n, N] sorted ascending, and their running sums [n, N]: at index p that of the p largest keys."""
    ascending = np.sort(rows, axis=-1)
    sums = np.zeros(rows.shape)
    np.cumsum(ascending[:, :0:-1], axis=-1, dtype=np.float64, out=sums[:, 1:])
    return ascending, sums


class _CutSearch:
    """The search for the cut that gives a sparsity, in passes over the map that hold few of its numbers.

    Of a row in descending order, the key that p others go before (p >= 1) is pruned if and only if
    the first p - 1 already reach the cut. Their sum is called the key's *step* (as no cut is above 1, 1
    where rounding made it more): the sparsity changes at steps only, and a cut prunes the keys whose step is
    not below it. Keys in the prefix columns are spared, whatever the cut.
    """

    def __init__(self, attention: Attention, num_prefix_tokens: int) -> None:
        """``attention``: [L, H, N, N]."""
        self._attention = attention
        self._prefix = num_prefix_tokens

    def find(self, sparsity: float) -> float:
        """The cut of :func:`info_mask_of_sparsity`."""
        cuts, pruned = self._outcomes(self._bracket(sparsity))
        best = int(np.abs(pruned - sparsity * self._attention.size).argmin())
        return _short_decimal(float(cuts[best - 1]) if best else -1.0, float(cuts[best]))

    def _bracket(self, sparsity: float) -> _Bracket:
        """Around the largest step at which a cut prunes enough, by counting the steps in ever finer cells."""
        digits, first, number = _DIGITS, 0, 2**_DIGITS + 1  # binary digits; the last cell is that of 1 itself
        while True:
            counts = self._count(digits, first, number)
            pruned = counts[::-1].cumsum()[::-1]
            if digits == _DIGITS:
                self._check_range(sparsity, fewest=int(pruned[-2]), most=int(pruned[0]))
            enough = np.flatnonzero(pruned[:-1] >= sparsity * self._attention.size)
            here = int(enough[-1]) if len(enough) else 0
            cell, width = first + here, 2.0**-digits
            if counts[here] <= FEW or digits == _MANTISSA or cell == 2**digits:
                return _Bracket(cell * width, (cell + 1) * width, int(pruned[here + 1]))
            finer = min(_DIGITS, _MANTISSA - digits)
            digits, first, number = digits + finer, cell << finer, 2**finer

    def _count(self, digits: int, first: int, number: int) -> NDArray[np.intp]:
        """How many steps at which the sparsity changes are in each of ``number`` cells, and how many above."""

        def count(part: Part) -> NDArray[np.intp]:
            steps, spared = self._steps(part)
            # A product with a power of two is exact.
            cells = (steps[~spared] * 2.0**digits).astype(np.intp)
            cells = np.minimum(cells[cells >= first] - first, number)
            return np.bincount(cells, minlength=number + 1)

        return sum(map_parts(count, self._attention), np.zeros(number + 1, dtype=np.intp))

    def _steps(self, part: Part) -> tuple[Numbers, Keep]:
        """The steps of the keys in these rows [n, N - 1], ascending in each, and which of them are spared."""
        start = part[-1].start if isinstance(part[-1], slice) else 0
        rows = self._attention[part][max(self._prefix - start, 0) :]
        _, sums = _rank(rows)
        np.minimum(sums, 1, out=sums)
        spared = np.zeros(rows.shape, dtype=np.bool_)  # in descending order, as the steps
        for column in range(self._prefix):
            value = rows[:, column, None]
            after = np.count_nonzero(rows < value, axis=-1) + np.count_nonzero(rows[:, :column] == value, axis=-1)
            np.put_along_axis(spared, rows.shape[-1] - 1 - after[:, None], True, axis=-1)
        return sums[:, :-1], spared[:, 1:]

    def _outcomes(self, bracket: _Bracket) -> tuple[Numbers, NDArray[np.intp]]:
        """The cuts at which a key's step is, ascending, and how many entries each prunes.

        Those in the bracket, and beyond it on both sides up to the next that changes the sparsity.
        """
        low, high, above = bracket

        def look(part: Part) -> tuple[Numbers, NDArray[np.intp], float, float]:
            steps, spared = self._steps(part)
            changing = steps[~spared]
            below = float(changing.max(initial=0.0, where=changing < low))
            beyond = float(changing.min(initial=1.0, where=changing >= high))
            inside = (steps >= below) & (steps <= beyond)
            cuts, places = np.unique(steps[inside], return_inverse=True)
            return cuts, np.bincount(places[~spared[inside]], minlength=len(cuts)), below, beyond

        looks = list(map_parts(look, self._attention))
        steps, changes = (np.concatenate([one[index] for one in looks]) for index in range(2))
        below, beyond = max(one[2] for one in looks), min(one[3] for one in looks)
        # 1 is a cut also where no key has it as its step.
        cuts, places = np.unique(np.append(steps, 1.0), return_inverse=True)
        counts = np.zeros(len(cuts), dtype=np.intp)
        np.add.at(counts, places[:-1], changes)
        counts[cuts >= high] = 0  # they are in ``above``
        seen = (cuts >= below) & (cuts <= beyond)  # what lies further out was not seen by all
        return cuts[seen], above + counts[seen][::-1].cumsum()[::-1]

    def _check_range(self, sparsity: float, *, fewest: int, most: int) -> None:
        least, largest = fewest / self._attention.size, most / self._attention.size
        if not least - 0.005 <= sparsity <= largest + 0.005:
            raise SparsityError(
                f"--sparsity {sparsity:g} can't be reached by the info method on this map, only {least:.4f} to "
                f"{largest:.4f} (a key of every row and all prefix tokens are kept); choose one in this range."
            )


def _short_decimal(low: float, high: float) -> float:
    """The number with the fewest decimals in the interval that excludes ``low`` and includes ``high``."""
    for digits in range(1, 18):
        candidate = math.floor(high * 10.0**digits) / 10.0**digits
        if low < candidate <= high:
            return candidate
    return high
