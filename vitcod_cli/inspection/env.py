"""``vitcod env``: what a bug report should say of the machine. No names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vitcod_cli.machine import available_memory, cpu_features, cpu_name
from vitcod_cli.version import __version__

_PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "safetensors", "huggingface_hub", "typer", "rich", "Pillow"),
    *(
        "matplotlib",
        "PyYAML",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "webdataset",
        "datasets",
        "tensorboard",
        "wandb",
    ),
)
_FAST = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""What a CPU may have that our kernels or torch's make use of."""


def environment() -> dict[str, Any]:
    """Plain values: versions, CPU, memory and GPUs."""
    import torch

    features = cpu_features()
    memory = available_memory()
    packages = {name: found for name in _PACKAGES if (found := _version(name))}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "vitcod": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {**packages, "torch": str(torch.__version__)},  # which names its build
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_features": [name for name in _FAST if name in features],
        "memory_left_gib": None if memory is None else round(memory / 2**30, 1),
        "cuda": torch.version.cuda if gpus else None,
        "gpus": gpus,
        "settings": {name: value for name, value in os.environ.items() if name in _SETTINGS},
    }


_SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "NO_COLOR"),
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_NTASKS", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"),
)
"""Variables that change what happens, and tell nothing of the user."""


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people, a line each, to be pasted."""
    rows = {
        **{name: found[name] for name in ("vitcod", "python", "system")},
        **found["packages"],
        "CPU": f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads",
        "has": ", ".join(found["cpu_features"]) or "none of what makes it fast",
        "memory left": "unknown" if found["memory_left_gib"] is None else f"{found['memory_left_gib']} GiB",
        "GPUs": ", ".join(found["gpus"]) or "none that torch can use",
        **found["settings"],
    }
    width = max(map(len, rows))
    return [f"{name:{width}}  {value}" for name, value in rows.items()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
