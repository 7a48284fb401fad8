"""What ``vitcod bench --masks`` measured, for people (80 columns) and for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vitcod_cli.bench.measure import Comparison, Results
from vitcod_cli.bench.report import heading, table_of
from vitcod_cli.bench.verdict import percent, standing, times
from vitcod_cli.reporting import visible

_COMPARED = "A forward pass under the mask as a multiple of one without it, over pairs timed one after the other."


@dataclass(frozen=True)
class MaskTimes:
    """The model under one mask, against itself without one.

    Attributes:
        mask: the file.
        img_size: height and width in pixels.
        tokens: N.
        sparsity: share of pruned entries among all.
        saved_share: of all arithmetic, what the mask prunes.
        results: a comparison for each batch size that memory sufficed for.
    """

    mask: str
    img_size: tuple[int, int]
    tokens: int
    sparsity: float
    saved_share: float
    results: Results

    @property
    def pays(self) -> bool:
        """Whether it saves time at the largest batch that was measured."""
        return self._largest is not None and standing(self._largest, self.results) == "faster"

    @property
    def saved_time(self) -> float:
        """Share of the time that it saves at the largest batch; 0 where nothing could be compared."""
        return 0.0 if self._largest is None else 1 - self._largest.ratio.median

    @property
    def _largest(self) -> Comparison | None:
        return max(self.results.comparisons, key=lambda one: one.batch_size, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "mask": self.mask,
            "img_size": list(self.img_size),
            "tokens": self.tokens,
            "sparsity": self.sparsity,
            "saved_share": self.saved_share,
            "pays": self.pays,
            "measurements": [one.to_dict() for one in self.results.measurements],
            "comparisons": [
                {**one.to_dict(), "mask_is": standing(one, self.results)} for one in self.results.comparisons
            ],
        }


@dataclass(frozen=True)
class MasksReport:
    """One run.

    Attributes:
        subject: the model and where its weights came from, in words.
        environment: see :func:`~vitcod_cli.bench.environment.environment`, and the ``attention``.
        masks: in the order given.
    """

    subject: str
    environment: dict[str, Any]
    masks: list[MaskTimes]

    @property
    def verdict(self) -> str:
        """Which of the masks pay, a sentence for each image size, the smallest first."""
        sizes = sorted({one.img_size for one in self.masks})
        return " ".join(self._verdict_at(size) for size in sizes)

    def _verdict_at(self, size: tuple[int, int]) -> str:
        own = [one for one in self.masks if one.img_size == size]
        paying = [one for one in own if one.pays]
        if not paying:
            which = "the mask saves" if len(own) == 1 else "the masks save"
            return f"At {_pixels(size)} pixels {which} no time that could be told here."
        best = max(paying, key=lambda one: one.saved_time)
        found = f"At {_pixels(size)} pixels {visible(best.mask)} saves {percent(best.saved_time)} of the time"
        if len(own) == 1:
            return f"{found}."
        return f"{found}, the most; {len(paying)} of the {len(own)} masks save{'s' * (len(paying) == 1)} some."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        masks = [one.to_dict() for one in self.masks]
        return {"model": self.subject, "environment": self.environment, "masks": masks, "verdict": self.verdict}

    def text(self, *, colors: bool = False) -> str:
        """A table and sentences, as wide as the terminal; 80 columns in a pipe."""
        console = Console(markup=False, highlight=False, emoji=False, force_terminal=colors)
        with console.capture() as captured:
            files = {str(number): visible(one.mask) for number, one in enumerate(self.masks, 1)}
            console.print(heading({"model": visible(self.subject), **files}, self.environment, trained=False))
            console.print("\nUnder each mask", style="bold")
            console.print(self._table())
            console.print(_COMPARED, style="dim")
            console.print(f"\n{self.verdict}")
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _table(self) -> Table:
        table = table_of("", "pixels", "tokens", "pruned", "MACs", "batch", "time", "middle half", "mask is")
        for number, one in enumerate(self.masks, 1):
            what = [
                str(number), _pixels(one.img_size), f"{one.tokens:,}",
                f"{one.sparsity:.1%}", times(1 - one.saved_share),
            ]  # fmt: skip
            compared = {each.batch_size: each for each in one.results.comparisons}
            for size in dict.fromkeys(each.batch_size for each in one.results.measurements):
                table.add_row(*what, str(size), *_figures(compared.get(size), one.results))
                what = [""] * len(what)
        return table


def _figures(one: Comparison | None, results: Results) -> list[str]:
    if one is None:
        return ["-", "out of memory", "-"]
    half = f"{times(one.ratio.lower)} to {times(one.ratio.upper)}"
    return [times(one.ratio.median), half, standing(one, results)]


def _pixels(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"
