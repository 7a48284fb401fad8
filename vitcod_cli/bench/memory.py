"""The most memory that a pass takes, and what running out of it looks like."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

_PROCESS = Path("/proc/self")


def peak_memory(run: Callable[[], None], model: nn.Module, device: torch.device) -> int | None:
    """Bytes at the worst moment of ``run``: the weights of ``model``, and what ``run`` takes on top.

    On a GPU the rise is that of torch's allocator. With one model on it, the sum is
    ``torch.cuda.max_memory_allocated`` less the input images; other models are not counted.
    On the CPU it is the rise of the process's resident memory, whose peak Linux can reset
    (``clear_refs``, see proc_pid_clear_refs(5)). Free memory that the C library holds back is given
    to the system first: else ``run`` could use it without a rise. None where there is no such peak.
    """
    rise = _cuda_rise(run, device) if device.type == "cuda" else _resident_rise(run)
    return None if rise is None else rise + weight_bytes(model)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of ``model``."""
    return sum(tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


def _cuda_rise(run: Callable[[], None], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_rise(run: Callable[[], None]) -> int | None:
    gc.collect()
    _return_free_memory()
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    peak = _status("VmHWM")
    return None if before is None or peak is None else max(peak - before, 0)


def _return_free_memory() -> None:
    with suppress(AttributeError, OSError, TypeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int | None:
    try:
        match = re.search(rf"^{key}:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the GPU or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def release(device: torch.device) -> None:
    """Give back what nobody holds any more, after running out of memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
