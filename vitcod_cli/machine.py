"""What this machine is: its CPU, how much memory is left, and how many processes share it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def cpu_name() -> str:
    """The processor's model name, or at least its architecture."""
    return _of_the_cpu("model name") or platform.processor() or platform.machine()


def cpu_features() -> frozenset[str]:
    """Instruction sets that the CPU has, as Linux spells them; empty elsewhere."""
    return frozenset((_of_the_cpu("flags") or _of_the_cpu("Features")).split())


def has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32: in AMX tiles, or by instructions of AVX-512."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_features())


def _of_the_cpu(field: str) -> str:
    """A line of what Linux says of the first core; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def available_memory() -> int | None:
    """Bytes of main memory that can still be had; None where the system doesn't say.

    Limits of containers and jobs count.
    """
    amounts = [amount for amount in (_of_the_system(), *_of_groups()) if amount is not None]
    return min(amounts, default=None)


def available_gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU that can still be had; None for any other device."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def free_space(folder: Path) -> int | None:
    """Bytes free on the disk of ``folder``, which need not be there yet; None where the system doesn't say."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None


def local_processes() -> int:
    """Processes of this run on this machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1"
    return max(1, int(text)) if text.isdecimal() else 1


def gigabytes(count: float) -> str:
    """``1536000000`` -> ``1.5 GB``."""
    return f"{count / 1e9:,.1f} GB"


def _of_the_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except (OSError, ValueError, IndexError):
        pass
    try:  # no Linux: all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _of_groups() -> Iterator[int | None]:
    """What every control group that this process is in has left."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        group, names = (_CGROUP / "memory", _V1) if controllers else (_CGROUP, _V2)
        yield _left(group, *names)  # all that a container sees of its own
        for part in Path(path).parts[1:]:
            group = group / part
            yield _left(group, *names)


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = (int((group / name).read_text(encoding="ascii")) for name in (limit, usage))
        statistics = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no such group, or no limit
        return None
    cached = sum(int(line.split()[1]) for line in statistics if line.split()[0] == cache)
    return max(0, most - used + cached)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: Python's, NumPy's, torch's on any device, the linker's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "cannot allocate memory", "not enough memory", "failed to map segment")
    return isinstance(error, (RuntimeError, ImportError, OSError)) and any(
        word in str(error).lower() for word in words
    )
