"""What a measurement depends on beside the model: kind of machine, versions, precision. No host names."""

from __future__ import annotations

import platform
from typing import Any

import torch

from vitcod_cli.artifacts.provenance import versions
from vitcod_cli.machine import cpu_name
from vitcod_cli.runtime import Runtime


def environment(runtime: Runtime) -> dict[str, Any]:
    """Plain values, for ``--json`` and the report's first lines."""
    settings, device = runtime.settings, runtime.device
    cuda = device.type == "cuda"
    return {
        **versions(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "precision": str(runtime.dtype).removeprefix("torch."),
        "training_precision": str(runtime.for_training.dtype).removeprefix("torch."),
        "compile": settings.compile,
        "channels_last": settings.channels_last,
        "deterministic": settings.deterministic,
        "seed": settings.seed,
    }
