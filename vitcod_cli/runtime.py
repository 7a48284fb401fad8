"""Where and how a command computes: device, precision, threads, seeds, process group.

torch is imported inside the functions, so that the settings can be shown by ``--help`` without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from vitcod_cli import distributed
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import has_fast_bfloat16
from vitcod_cli.place import check_environment
from vitcod_cli.process_group import process_group
from vitcod_cli.settings import Settings, setting

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vitcod_cli.reporting import Reporter

    ModuleT = TypeVar("ModuleT", bound=nn.Module)

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings(Settings, panel="Runtime"):
    """Options of every command that runs a model."""

    device: str = setting("auto", "Device: auto (a CUDA GPU if there is one), cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Precision of the arithmetic; auto is bfloat16 on a GPU that has it. On a CPU, auto is bfloat16 for "
        "calibration and training where that is fast (AMX or avx512_bf16), and float32 for evaluation, attention "
        "maps and all else.",
    )
    seed: int = setting(0, "Seed of everything random, below 2**32.", minimum=0, maximum=2**32 - 1)
    deterministic: bool = setting(False, "Only algorithms that give the same bits every time.")
    compile: bool = setting(False, "Compile the model with torch.compile.")
    channels_last: bool = setting(False, "Keep images channels-last in memory.")
    threads: int | None = setting(
        None, "CPU threads of each process.", minimum=1, maximum=1024, show_default="torch's choice"
    )
    nproc_per_node: int = setting(
        1,
        "Processes to start on this machine (one per GPU), as torchrun does.",
        minimum=1,
        maximum=1024,
        metavar="N",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device, re.ASCII) is None:
            raise VitcodError(f"--device {self.device} is not supported; use auto, cpu, cuda or cuda:1.")
        if self.nproc_per_node > 1:
            self.check_own_device(self.nproc_per_node)

    def check_own_device(self, processes: int) -> None:
        """Raises a VitcodError if ``processes`` processes would all compute on the one GPU that is named."""
        if ":" in self.device and processes > 1:
            raise VitcodError(
                f"--device {self.device} is one GPU for {processes} processes; --device cuda gives each its own."
            )


@dataclass(frozen=True)
class Runtime:
    """The outcome of :class:`RuntimeSettings` on this machine.

    Attributes:
        settings: what was asked for.
        device: where this process computes.
        dtype: of the arithmetic inside :meth:`autocast`; weights stay float32. What is compared with published
            figures is computed in it; calibration and training have that of :attr:`for_training`.
    """

    settings: RuntimeSettings
    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """The context that the model's forward and loss run in."""
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prepare(self, model: ModuleT) -> ModuleT:
        """``model`` moved to the device (in place), channels-last if asked for."""
        import torch

        model.to(self.device)
        if self.settings.channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    def to_device(self, images: torch.Tensor) -> torch.Tensor:
        """A batch of images [B, C, H, W] on the device, channels-last if asked for."""
        import torch

        if self.settings.channels_last:
            return images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return images.to(self.device, non_blocking=True)

    def compiled(self, model: ModuleT) -> ModuleT:
        """``model``, compiled in place when ``--compile`` is given; its parameter names stay."""
        if self.settings.compile:
            model.compile()
        return model

    @property
    def for_training(self) -> Runtime:
        """The same with the precision of calibration and training."""
        return replace(self, dtype=_pick_dtype(self.settings.precision, self.device, training=True))

    def announce_precision(self, reporter: Reporter) -> None:
        """Say so where calibration and training have another precision than evaluation."""
        if self.for_training.dtype != self.dtype:
            reporter.info(
                "Calibration and training are in bfloat16, which this CPU computes fast, evaluation in float32; "
                "--precision float32 or bfloat16 is for both."
            )

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it (for time measurements)."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """The most memory in use so far, in bytes: of the GPU, or of the process on the CPU."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def start(settings: RuntimeSettings) -> Iterator[Runtime]:
    """Pick the device, seed everything, join the run's other processes for the time of the block.

    Raises:
        VitcodError: if the device isn't there, or there are more processes than GPUs.
    """
    import torch

    check_environment()
    settings.check_own_device(distributed.world_size())
    with _restored_switches():
        device = _pick_device(settings.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = not settings.deterministic
        else:
            _keep_freed_memory()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if settings.deterministic:
            _make_deterministic(device)
        seed_everything(settings.seed)
        with process_group(device):
            yield Runtime(settings, device, _pick_dtype(settings.precision, device))


@contextmanager
def _restored_switches() -> Iterator[None]:
    """Put back at the end what :func:`start` sets for the whole process: others may compute in it, too."""
    import torch

    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    mem_efficient = torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    workspace = os.environ.get(_CUBLAS_WORKSPACE)
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    device = torch.cuda.current_device() if initialized else None
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cuda.enable_mem_efficient_sdp(mem_efficient)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        if workspace is None:
            os.environ.pop(_CUBLAS_WORKSPACE, None)
        if device is not None:
            torch.cuda.set_device(device)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next batch; elsewhere, nothing.

    By default it returns large blocks to the system at once, which then has to clear the same pages for every
    layer: a tenth of a forward pass and more (docs/benchmarks.md).
    """
    import ctypes

    trim_threshold, mmap_max = -1, -4  # malloc.h
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def free_memory() -> None:
    """Give freed memory back after all (:func:`_keep_freed_memory`), before work with another need of it."""
    import ctypes

    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _make_deterministic(device: torch.device) -> None:
    import torch

    # cuBLAS reads this when its first handle is made.
    os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        # The backward passes of these fused attentions add up in any order.
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def seed_everything(*numbers: int) -> None:
    """Seed the random generators of Python, NumPy and torch (all devices) from ``numbers``.

    The trainer calls it before every step with (seed, epoch, step, rank): what is drawn in a step
    then depends on nothing that happened before it, and a resumed run draws the same.
    """
    import random

    import numpy as np
    import torch

    state = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))


def _pick_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise VitcodError(f"--device {name}: torch sees no CUDA GPU here; use --device cpu or auto.")
    count, index = torch.cuda.device_count(), device.index
    if ":" in name and index >= count:
        raise VitcodError(f"--device {name}: torch sees GPUs cuda:0 to cuda:{count - 1} here; use one of them.")
    if ":" not in name:
        index = distributed.local_rank() % count if _sees_own_gpus() else distributed.local_rank()
    if index >= count:
        raise VitcodError(
            f"--device {name}: process {distributed.local_rank()} of this machine wants GPU {index} but "
            f"there are {count}; start at most {count} processes a machine (--nproc-per-node)."
        )
    return torch.device("cuda", index)


def _sees_own_gpus() -> bool:
    """Whether SLURM gives each task GPUs of its own, which the task counts from 0 (``--gpus-per-task``, say)."""
    bound = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND")
    by_srun = "SLURM_STEP_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    return by_srun and any(name in os.environ for name in bound)


def usable_cores() -> int:
    """Cores that this process may run on, cgroup limits of containers included."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def _pick_dtype(precision: str, device: torch.device, *, training: bool = False) -> torch.dtype:
    import torch

    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = training and device.type == "cpu" and has_fast_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
