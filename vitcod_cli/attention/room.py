"""What attention maps of a model take of memory and disk, and where they go while they are measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from vitcod_cli.artifacts.scratch import Scratch
from vitcod_cli.attention import importance as measured
from vitcod_cli.attention.ranks import sorted_at_once
from vitcod_cli.distributed import gather_objects, least
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import available_gpu_memory, available_memory, free_space, gigabytes, local_processes
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape
from vitcod_cli.reporting import Reporter

_SHARE = 0.8
"""Of what memory is left; how much else will be needed is an estimate."""

_ACTIVATIONS = 10
"""Floats that a backward pass keeps for each channel of a token and block, roughly: weights need no gradient."""

_SORTING = 32
"""Bytes an entry while it is sorted: its place, its value, and the sort's own."""


class MapBytes(NamedTuple):
    """What measuring maps takes, in bytes, about.

    Attributes:
        arrays: of main memory, or of a temporary file.
        rest: of main memory in any case.
        gpu: of the GPU's memory, if the model is on one.
        scratch: of a temporary file, where ``arrays`` are in one.
        output: of the file that is written.
    """

    arrays: int
    rest: int
    gpu: int
    scratch: int
    output: int

    @classmethod
    def of(cls, model: Transformer, device: torch.device, *, importance: bool) -> MapBytes:
        """Of one process: sums in float64; then the map, and ranks, masks and a backward pass for importance."""
        shape = attention_shape(model)
        entries, tokens, on_gpu = math.prod(shape), shape[-1], device.type == "cuda"
        sums, block = 8 * entries, 8 * entries // shape[0]
        images = min(max(measured.ENTRIES // tokens**2, 1), 32)
        step = 4 * _ACTIVATIONS * images * tokens * int(model.embed_dim) * len(model.blocks)
        backward = 2 * entries + (_SORTING * sorted_at_once(entries) if importance else 0)
        ranked = (backward + (0 if on_gpu else step)) if importance else 0
        maps = (8 if importance else 4) * entries
        return cls(
            arrays=maps if on_gpu else max(sums + block, maps),
            rest=block + ranked,
            gpu=max(sums, 6 * entries + step if importance else 0) if on_gpu else 0,
            scratch=maps if on_gpu else max(sums + 4 * entries, maps),
            output=maps,
        )


def scratch_for_maps(
    model: Transformer,
    device: torch.device,
    folder: Path,
    reporter: Reporter,
    *,
    importance: bool,
    writes: bool = True,
) -> Scratch:
    """Where a map, and the importance of its entries, are measured; all processes call it together.

    In memory, or else in a temporary file in ``folder``; then ``reporter`` says so.

    Args:
        folder: of the file that will be written; it need not be there yet: then its parent holds what is
            temporary.
        writes: whether one will be.

    Raises:
        VitcodError: if there is no room.
    """
    need, processes = MapBytes.of(model, device, importance=importance), max(gather_objects(local_processes()))
    subject = f"An attention map {'with importance ' if importance else ''}of {list(attention_shape(model))}"
    way_on = "take a smaller --img-size or model" + (", or leave importance out" if importance else "")
    memory = least(available_memory(), math.ceil(processes * (need.arrays + need.rest) / _SHARE))
    disk = least(free_space(folder), processes * need.scratch + need.output) - (need.output if writes else 0)
    gpu = least(available_gpu_memory(device), need.gpu)
    if disk < 0:
        raise VitcodError(
            f"{subject} is a file of {gigabytes(need.output)}, and the disk of {folder} has "
            f"{gigabytes(disk + need.output)} free; free some space, name another folder, or {way_on}."
        )
    if need.gpu > gpu:
        raise VitcodError(
            f"{subject} needs about {gigabytes(need.gpu)} of GPU memory, and {gigabytes(gpu)} are left; {way_on}, "
            "or use --device cpu."
        )
    if processes * (need.arrays + need.rest) <= _SHARE * memory:
        return Scratch()
    if processes * need.rest > memory or processes * need.scratch > disk:
        raise VitcodError(
            f"{subject} needs about {gigabytes(processes * (need.arrays + need.rest))} of main memory, or "
            f"{gigabytes(processes * need.rest)} and {gigabytes(processes * need.scratch)} of the disk of "
            f"{folder} beside what is written; {gigabytes(memory)} and {gigabytes(disk)} are left; {way_on}."
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    reporter.info(
        f"{subject} doesn't fit into memory while it is measured: up to {gigabytes(processes * need.scratch)} are "
        f"in temporary files in {there}."
    )
    return Scratch(there)
