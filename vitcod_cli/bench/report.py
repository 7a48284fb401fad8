"""What ``vitcod bench`` measured, for people (80 columns) and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from vitcod_cli.bench.counting import Counts
from vitcod_cli.bench.measure import Measurement, Results
from vitcod_cli.bench.verdict import in_ms, mask_verdict, standing, times
from vitcod_cli.reporting import visible

FIRST, UNMASKED, OTHER = "model", "no mask", "against"
"""How the results call the model, the same without its mask, and a checkpoint of ``--against``."""

_FOLDED = "The auto-encoders are folded into the qkv weights: at inference they cost nothing."
_MEASURED = (
    "Median, and the middle half of the passes. Peak memory: the weights and what a pass takes on top, in "
    "training with gradients and optimizer state."
)
_COMPARED = "The model's time as a multiple of the other's, over pairs timed one after the other."
_NOISY = (
    "Too noisy to tell which is faster: measure for longer (--seconds, --repeats), on a machine that does "
    "nothing else."
)


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        about: of each model by name: its config, the files it came from.
        environment: see :func:`~vitcod_cli.bench.environment.environment`.
        counts: of the models by name; what an exported program computes isn't counted.
    """

    about: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    counts: dict[str, Counts]
    results: Results

    @property
    def verdict(self) -> str | None:
        """What the mask is worth; None without one."""
        if FIRST not in self.counts:
            return None
        return mask_verdict(self.counts[FIRST], self.results, UNMASKED)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {
            "models": {
                name: {**about, "static": _static(self.counts[name]) if name in self.counts else None}
                for name, about in self.about.items()
            },
            "environment": self.environment,
            "measurements": [one.to_dict() for one in self.results.measurements],
            "comparisons": [
                {**one.to_dict(), "model_is": standing(one, self.results)} for one in self.results.comparisons
            ],
            "mask_verdict": self.verdict,
        }

    def text(self, *, colors: bool = False) -> str:
        """Tables and sentences, as wide as the terminal; 80 columns in a pipe."""
        console = Console(markup=False, highlight=False, emoji=False, force_terminal=colors)
        with console.capture() as captured:
            console.print(self._heading())
            if self.counts:
                console.print("\nCounted, for one image", style="bold")
                console.print(self._counted())
            first = self.counts.get(FIRST)
            if first is not None and first.auto_encoder_parameters and not first.auto_encoder_macs:
                console.print(_FOLDED, style="dim")
            console.print("\nMeasured", style="bold")
            console.print(self._measured())
            console.print(_MEASURED, style="dim")
            if self.results.comparisons:
                console.print("\nCompared", style="bold")
                console.print(self._compared())
                console.print(_COMPARED, style="dim")
                if any(standing(one, self.results) == "too noisy" for one in self.results.comparisons):
                    console.print(_NOISY, style="dim")
            if self.verdict is not None:
                console.print(f"\n{self.verdict}")
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def _heading(self) -> Table:
        """Long lines go on below themselves, so that what a name says never begins one."""
        trained = any(one.mode == "training" for one in self.results.measurements)
        subjects = {name: visible(_in_words(about)) for name, about in self.about.items()}
        return heading(subjects, self.environment, trained=trained)

    def _counted(self) -> Table:
        names = [name for name in self.about if name != UNMASKED and name in self.counts]
        counts = [self.counts[name] for name in names]
        table = table_of("", *(names if len(names) > 1 else [""]))
        table.add_row("parameters", *(f"{one.parameters:,}" for one in counts))
        table.add_row("multiply-accumulates (MACs)", *(f"{one.macs:,}" for one in counts))
        table.add_row("  in attention products", *(_part(one.attention_macs, one.macs) for one in counts))
        if any(one.kept_attention_macs < one.attention_macs for one in counts):
            kept = (_part(one.kept_attention_macs, one.attention_macs) for one in counts)
            table.add_row("  of these under the mask", *kept)
        return table

    def _measured(self) -> Table:
        several = len(self.about) > 1
        table = table_of("", "batch", *(["of"] if several else []), "ms", "middle half", "images/s", "peak MiB")
        for one in self.results.measurements:
            table.add_row(one.mode, str(one.batch_size), *([one.model] if several else []), *_figures(one))
        return table

    def _compared(self) -> Table:
        table = table_of("", "batch", "against", "time", "middle half", "pairs", "model is")
        for one in self.results.comparisons:
            half = f"{times(one.ratio.lower)} to {times(one.ratio.upper)}"
            table.add_row(
                one.mode,
                str(one.batch_size),
                one.against,
                times(one.ratio.median),
                half,
                str(one.pairs),
                standing(one, self.results),
            )
        return table


def heading(subjects: Mapping[str, str], env: Mapping[str, Any], *, trained: bool) -> Table:
    """What was measured, by name, and where.

    Args:
        env: see :func:`~vitcod_cli.bench.environment.environment`, and the ``attention``.
        trained: whether training steps were measured, too.
    """
    how = [f"{env['threads']} threads" if env["threads"] > 1 else "1 thread", env["precision"]]
    if trained and env["training_precision"] != env["precision"]:
        how.append(f"training in {env['training_precision']}")
    how += [word.replace("_", " ") for word in ("compile", "channels_last", "deterministic") if env[word]]
    if env["attention"] != "auto":
        how.append(f"{env['attention']} attention")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(min_width=8, no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in subjects.items():
        table.add_row(f"{name}:", text)
    table.add_row("on:", visible(", ".join([env["device_name"], *how])))
    table.add_row("with:", f"torch {env['torch']}, timm {env['timm']}, vitcod {env['vitcod']}")
    return table


def table_of(*columns: str) -> Table:
    """Words to the left, figures to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for index, name in enumerate(columns):
        left = index == 0 or name in ("of", "against", "model is", "mask is")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _in_words(about: dict[str, Any]) -> str:
    height, width = about["img_size"]
    tokens = [] if about["tokens"] is None else [f"{about['tokens']} tokens"]
    parts = [about["model"], f"{height}x{width} pixels", *tokens, about["source"]]
    return ", ".join([*parts, f"mask {about['mask']}"] if about["mask"] else parts)


def _static(counts: Counts) -> dict[str, Any]:
    shares = ("attention_share", "saved_attention_share", "saved_share")
    return {**asdict(counts), **{name: getattr(counts, name) for name in shares}}


def _part(macs: int, whole: int) -> str:
    return f"{macs:,} ({100 * macs / whole:.1f} %)"


def _figures(one: Measurement) -> list[str]:
    memory = "-" if one.peak_bytes is None else f"{one.peak_bytes / 2**20:,.0f}"
    if one.out_of_memory:
        return ["-", "out of memory", "-", memory]
    ms = one.milliseconds
    return [in_ms(ms.median), f"{in_ms(ms.lower)} to {in_ms(ms.upper)}", f"{one.images_per_second:,.1f}", memory]
