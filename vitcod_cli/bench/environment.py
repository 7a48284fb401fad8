"""What a measurement depends on beside the model: kind of machine, versions, precision. No host names."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import timm
import torch

from vitcod_cli.runtime import Runtime
from vitcod_cli.version import __version__


def environment(runtime: Runtime) -> dict[str, Any]:
    """Plain values, for ``--json`` and the report's first lines."""
    settings, device = runtime.settings, runtime.device
    cuda = device.type == "cuda"
    return {
        "vitcod": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "precision": str(runtime.dtype).removeprefix("torch."),
        "compile": settings.compile,
        "channels_last": settings.channels_last,
        "deterministic": settings.deterministic,
        "seed": settings.seed,
    }


def cpu_name() -> str:
    """The processor's model name, or at least its architecture."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()
