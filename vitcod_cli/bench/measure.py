"""All measurements of a run: each way of running, each batch size, all models interleaved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vitcod_cli.bench.memory import is_out_of_memory, peak_memory, release
from vitcod_cli.bench.settings import BenchOptions
from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.bench.workload import Work, for_inference, forward_pass, make_optimizer, training_step
from vitcod_cli.evaluation.programs import Program
from vitcod_cli.model.families import Transformer
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime

Mode = Literal["forward", "training"]
Subject = Transformer | Program


@dataclass(frozen=True)
class Measurement:
    """Time and memory of one model, mode and batch size.

    Attributes:
        seconds: of each timed pass; empty when there was not enough memory.
        peak_bytes: see :func:`~vitcod_cli.bench.memory.peak_memory`; None where it can't be told.
    """

    mode: Mode
    batch_size: int
    model: str
    seconds: list[float]
    peak_bytes: int | None

    @property
    def out_of_memory(self) -> bool:
        """Whether there was not enough memory."""
        return not self.seconds

    @property
    def milliseconds(self) -> Spread:
        """Of a pass over one batch."""
        return Spread.of([1000 * value for value in self.seconds])

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return 1000 * self.batch_size / self.milliseconds.median

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the times are None when there was not enough memory."""
        names = ("median_ms", "q1_ms", "q3_ms", "iqr_ms", "images_per_second")
        figures: dict[str, Any] = dict.fromkeys(names)
        if not self.out_of_memory:
            ms = self.milliseconds
            values = (ms.median, ms.lower, ms.upper, ms.iqr, self.images_per_second)
            figures = dict(zip(names, values, strict=True))
        return {
            "mode": self.mode,
            "batch_size": self.batch_size,
            "model": self.model,
            "repeats": len(self.seconds),
            **figures,
            "peak_memory_bytes": self.peak_bytes,
            "out_of_memory": self.out_of_memory,
        }


@dataclass(frozen=True)
class Comparison:
    """The first model's time as a multiple of another's, over pairs timed one after the other."""

    mode: Mode
    batch_size: int
    against: str
    ratio: Spread
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "mode": self.mode,
            "batch_size": self.batch_size,
            "against": self.against,
            "time_ratio": self.ratio.median,
            "time_ratio_q1": self.ratio.lower,
            "time_ratio_q3": self.ratio.upper,
            "pairs": self.pairs,
        }


@dataclass(frozen=True)
class Results:
    """Everything that was measured, in the order of measuring."""

    measurements: list[Measurement] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)


def measure(models: dict[str, Subject], settings: BenchOptions, runtime: Runtime, reporter: Reporter) -> Results:
    """Time ``models`` interleaved; the first is compared with each of the others. Programs have no training step.

    Args:
        models: by the name that the results have; on the device. They may share weights. Forward passes
            leave them as they are; training steps, which come last, change their weights.
    """
    results, optimizers = Results(), _Optimizers()
    modes: list[Mode] = ["forward", "training"] if settings.training else ["forward"]
    for mode in modes:
        ready = {name: _ready(model, mode, settings, runtime) for name, model in models.items()}
        for batch_size in settings.batch_sizes:
            if runtime.settings.compile:
                torch.compiler.reset()  # else a second batch size gets code for any size, which is slower
            # One line, no bar: drawing a bar would take time from what is measured.
            reporter.info(f"Measuring {mode}, batch {batch_size}.")
            running = runtime.for_training if mode == "training" else runtime
            measurements = _Case(mode, batch_size, settings, running, optimizers).measure(ready)
            results.measurements.extend(measurements)
            results.comparisons.extend(_compare(measurements))
    return results


def _ready(model: Subject, mode: Mode, settings: BenchOptions, runtime: Runtime) -> Subject:
    """As it is timed; what an exported program computes can't be compiled any further."""
    if isinstance(model, Program):
        return model
    if mode == "forward":
        model = for_inference(model, runtime.dtype, settings.attention)
    return runtime.compiled(model)


def _compare(measurements: Sequence[Measurement]) -> Iterator[Comparison]:
    first, *others = measurements
    for other in others:
        if not first.out_of_memory and not other.out_of_memory:
            spread = ratio(first.seconds, other.seconds)
            yield Comparison(first.mode, first.batch_size, other.model, spread, len(first.seconds))


class _Optimizers:
    """One optimizer for the models that share weights: its state would be held twice."""

    def __init__(self) -> None:
        self._made: dict[nn.Parameter, Optimizer] = {}

    def of(self, model: nn.Module) -> Optimizer:
        key = next(model.parameters())
        if key not in self._made:
            self._made[key] = make_optimizer(model)
        return self._made[key]


@dataclass(frozen=True)
class _Case:
    """One mode and batch size."""

    mode: Mode
    batch_size: int
    settings: BenchOptions
    runtime: Runtime
    optimizers: _Optimizers

    def measure(self, models: dict[str, Subject]) -> list[Measurement]:
        """Warm up and take the memory of one model after the other, then time them interleaved."""
        with ExitStack() as stack:
            works: dict[str, Work] = {}
            peaks: dict[str, int | None] = {}
            for name, model in models.items():
                with self._memory_may_run_out():
                    work = stack.enter_context(self._work(model))
                    peaks[name] = self._warm_up(work, model)
                    works[name] = work
            times: dict[str, list[float]] = {}
            with self._memory_may_run_out():
                times = self._time(works)
        return [
            Measurement(self.mode, self.batch_size, name, times.get(name, []), peaks.get(name)) for name in models
        ]

    def _work(self, model: Subject) -> AbstractContextManager[Work]:
        if self.mode == "forward" or isinstance(model, Program):
            return forward_pass(model, self.batch_size, self.runtime)
        return training_step(model, self.optimizers.of(model), self.batch_size, self.runtime)

    def _warm_up(self, work: Work, model: nn.Module) -> int | None:
        """The first passes, with compilation and all that is done once; returns the peak memory."""
        try:
            for _ in range(self.settings.warmup):
                work.run()
            work.forget()  # gradients and optimizer state belong to the peak of a step
            if isinstance(model, Program):  # whose weights are in the hands of its library
                return None
            return peak_memory(work.run, model, self.runtime.device)
        except BaseException:
            work.forget()
            raise

    def _time(self, works: dict[str, Work]) -> dict[str, list[float]]:
        if not works:
            return {}
        times = time_interleaved(
            [work.run for work in works.values()],
            repeats=self.settings.repeats,
            seconds=self.settings.seconds,
            synchronize=self.runtime.synchronize,
        )
        return dict(zip(works, times, strict=True))

    @contextmanager
    def _memory_may_run_out(self) -> Iterator[None]:
        """End the block quietly when there is no memory left."""
        try:
            yield
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler: while it runs, the error's frames hold what they had allocated.
        release(self.runtime.device)
