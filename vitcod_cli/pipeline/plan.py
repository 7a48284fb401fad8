"""How long the stages will take here, from a second of measuring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vitcod_cli.bench.workload import synthetic_images
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.workers import default_workers
from vitcod_cli.distributed import from_main, world_size
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.passes import block_passes, tokens_of
from vitcod_cli.pipeline.options import PipelineOptions
from vitcod_cli.pipeline.stages import lowrank_calibration
from vitcod_cli.runtime import Runtime

_BATCH = 8
_READ = 4
_MEASURED = 0.7
"""Seconds that each cost is measured for."""

_IMPORTANCE = 15
"""Evaluations of an image that take as long as its importance, about."""

_FEWER = 0.6
"""Share of the rounds of importance that are left on the way to a mask: what is pruned isn't measured again."""

_PASSES_OF_TRAINING = 4
"""Forward passes that a training step takes as long as, with the teacher's."""

_MASKED = 1.2
"""A step on a masked block in a calibration takes so many times one on a dense block, about, the next block's part
of it included."""

_JOINT = 0.4
"""A step on the first half of the blocks as one takes so many times one of each block, about."""


@dataclass(frozen=True)
class Costs:
    """Seconds, measured here: to read an image, for its forward pass, and for a step of calibration."""

    read: float
    forward: float
    step: float


def measure_costs(
    model: Transformer, images: ImageData, preprocess: Preprocess, options: PipelineOptions, runtime: Runtime
) -> Costs:
    """Costs on this machine; ``model`` is on the device, and stays as it is."""
    model.eval()
    batch = synthetic_images(model, _BATCH, runtime.device)
    with torch.no_grad():
        tokens = tokens_of(model, batch)
        forward = _seconds(lambda: model(batch), runtime) / _BATCH
    block, (block_pass, *following) = model.blocks[0], block_passes(model)
    size = max(1, options.calibration.calibrate_batch_size // world_size())
    tokens = tokens[torch.arange(size) % _BATCH]
    parameters = list(block.parameters())

    def step() -> None:
        with torch.enable_grad():
            output = block_pass(tokens)
            loss = output.float().square().mean()
            for next_pass in following[: Depth.ahead]:
                output = next_pass(output)
                loss = loss + output.float().square().mean()
            torch.autograd.grad(loss, parameters, allow_unused=True)

    workers = default_workers() if options.data.workers is None else options.data.workers
    read = _reading(images, preprocess) / max(workers, 1)
    return from_main(Costs(read, forward, _seconds(step, runtime.for_training)))


def _seconds(work: Callable[[], object], runtime: Runtime) -> float:
    """The best of many, after one to warm up: whatever else the machine does for a moment makes them slower."""
    times: list[float] = []
    end = time.perf_counter() + _MEASURED
    while len(times) < 4 or time.perf_counter() < end:
        runtime.synchronize()
        start = time.perf_counter()
        with runtime.autocast():
            work()
        runtime.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _reading(images: ImageData, preprocess: Preprocess) -> float:
    transform, start, read = preprocess.eval_transform(), time.perf_counter(), 0
    for index in range(min(_READ, len(images))):
        try:
            transform(images.load(index)[0].convert(preprocess.mode))
            read += 1
        except OSError:  # told by whoever needs it
            continue
    return (time.perf_counter() - start) / max(read, 1)


@dataclass(frozen=True)
class Plan:
    """Expected seconds of each stage, on all processes together."""

    low_rank: float
    attention_map: float
    on_the_way: float
    point: float

    @classmethod
    def of(
        cls,
        costs: Costs,
        options: PipelineOptions,
        *,
        blocks: int,
        train: int,
        calibrated: int,
        val: int,
        importance: bool,
    ) -> Plan:
        """Of a model of so many blocks, on so many training and validation images."""
        processes = world_size()
        evaluation = val * (costs.read + costs.forward)

        def calibration(settings: CalibrationSettings, factor: float) -> float:
            count = min(settings.calibrate_images, calibrated)
            looks = count * settings.crops(count) * (costs.read + (4 * costs.forward if settings.enabled else 0))
            steps = settings.calibrate_steps + _JOINT * settings.calibrate_joint_steps
            return looks + processes * blocks * steps * factor * costs.step

        lowrank = lowrank_calibration(options.calibration)
        mapped = min(options.map_images, train)
        sensitive = min(options.importance_images, train)

        def attention_map(sensitive: int, rounds: float = 1.0) -> float:
            looks = (mapped + sensitive) * (costs.read + 1.5 * costs.forward)
            return looks + sensitive * _IMPORTANCE * rounds * costs.forward

        training = options.epochs * train * (costs.read + _PASSES_OF_TRAINING * costs.forward)
        stage = calibration(options.calibration, _MASKED / 2) + evaluation + attention_map(sensitive, _FEWER)
        return cls(
            (calibration(lowrank, 1.0) + 2 * evaluation) / processes,
            attention_map(sensitive if importance else 0) / processes,
            stage / processes,
            (calibration(options.calibration, _MASKED) + training + (2 + options.epochs) * evaluation) / processes,
        )


def in_words(seconds: float) -> str:
    """``40 s``, ``4 min``, ``2.5 h``."""
    if seconds < 55:
        return f"{max(5 * round(seconds / 5), 5)} s"
    if seconds < 55 * 60:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.1f} h"
