"""What there is to report of: folders and files to plain values. They may be damaged, or anybody's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.describe import ATTENTION_MAP, CHECKPOINT, MASK, describe
from vitcod_cli.artifacts.files import first_line, sha256_of
from vitcod_cli.artifacts.mask import mask_in_checkpoint, read_mask
from vitcod_cli.artifacts.safetensors_file import open_safetensors
from vitcod_cli.errors import VitcodError

PIPELINES = ("compress.json", "sweep.json")
_CONFIG, _METRICS = "config.yaml", "metrics.jsonl"
_CHECKPOINTS = ("best.safetensors", "last.safetensors")
_FLAG = "RUN"
_LARGEST = 64 << 20
_LARGEST_CONFIG = 1 << 20


@dataclass
class Pipeline:
    """A folder of ``compress`` or ``sweep``.

    Attributes:
        record: what its JSON file says.
        run: of the finished model; None where there is none, as in a sweep.
    """

    name: str
    record: dict[str, Any]
    run: Run | None = None


@dataclass
class Run:
    """A folder of a fine-tuning command.

    Attributes:
        metrics: its lines; those that can't be read are left out, and counted in ``damaged``.
        info: what the checkpoint says of itself; empty where there is none yet.
        keep: the mask in the checkpoint, bool [L, H, N, N].
    """

    name: str
    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    damaged: int
    checkpoint: str
    sha256: str
    info: dict[str, Any]
    keep: NDArray[np.bool_] | None

    @property
    def command(self) -> str:
        """The command's name, where anything says it."""
        about = self.config.get("about")
        known = about.get("command") if isinstance(about, dict) else None
        return str(known or self.info.get("command") or "fine-tuning")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of epochs."""
        return [line for line in self.metrics if is_number(line.get("epoch"))]


@dataclass
class Artifact:
    """An attention map [L, H, N, N] (``keep`` None) or a mask."""

    name: str
    sha256: str
    info: dict[str, Any]
    keep: NDArray[np.bool_] | None = None
    attention: NDArray[Any] | None = None


Source = Pipeline | Run | Artifact


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_source(path: str) -> list[Source]:
    """All that a folder or file holds, in order of time.

    Raises:
        VitcodError: if there is nothing to report of in it, or it can't be read.
    """
    root = Path(path)
    if root.is_dir():
        found = _folder(root, path)
        if not found:
            raise VitcodError(
                f"{_FLAG} {path} holds no run, map or mask; name the --output-dir of compress, sweep or a "
                "fine-tuning command."
            )
        return found
    if not root.is_file():
        raise VitcodError(f"{_FLAG} {path} does not exist; name the folder of a run.")
    artifact = _artifact(root)
    if artifact is None:
        raise VitcodError(
            f"{_FLAG} {path} is neither a map nor a mask: it seems to be {describe(root) or 'something else'}."
        )
    return [artifact]


def _folder(root: Path, path: str) -> list[Source]:
    for name in PIPELINES:
        if (root / name).is_file():
            return [_pipeline(root, root / name)]
    if _is_run(root):
        return [_run(root, root.resolve().name)]
    with os.scandir(root) as entries:
        names = sorted(
            (_time_of(Path(entry.path)), entry.name) for entry in entries if not entry.name.startswith(".")
        )
    found: list[Source] = []
    for _, name in names:
        child = root / name
        if child.is_dir() and _is_run(child):
            found.append(_run(child, name))
        elif child.is_dir() and any((child / each).is_file() for each in PIPELINES):
            found += _folder(child, path)
        elif child.is_file() and child.suffix in (".safetensors", ".npy") and (artifact := _artifact(child)):
            found.append(artifact)
    return found


def _time_of(path: Path) -> int:
    """When a run began, or a file was written."""
    for name in (_CONFIG, *PIPELINES):
        if (path / name).is_file():
            return (path / name).stat().st_mtime_ns
    return path.stat().st_mtime_ns if path.exists() else 0


def _is_run(folder: Path) -> bool:
    return (folder / _METRICS).is_file() or any((folder / name).is_file() for name in _CHECKPOINTS)


def _pipeline(root: Path, path: Path) -> Pipeline:
    def read() -> dict[str, Any]:
        content = json.loads(_bounded(path, _LARGEST).decode("utf-8"))
        rows, stages = content["results"], content["stages"]
        if not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in [*rows, *stages]):
            raise ValueError("its rows are none")
        return dict(content)

    record = _readable(path, read)
    pipeline = Pipeline(root.resolve().name, record)
    final = record.get("model")
    name = str(final.get("row")) if isinstance(final, dict) else ""
    if name not in ("", ".", "..") and os.sep not in name and _is_run(root / name):
        pipeline.run = _run(root / name, name)
    return pipeline


def _run(root: Path, name: str) -> Run:
    metrics, damaged = _metrics(root / _METRICS)
    checkpoint = next((each for each in _CHECKPOINTS if (root / each).is_file()), "")
    info: dict[str, Any] = {}
    keep = None
    if checkpoint:
        with open_safetensors(root / checkpoint, flag=_FLAG) as file:
            info = dict(file.info)
        mask = mask_in_checkpoint(root / checkpoint, _FLAG)
        keep = None if mask is None else mask.keep
    return Run(
        name=name,
        path=root,
        config=_config(root / _CONFIG),
        metrics=metrics,
        damaged=damaged,
        checkpoint=checkpoint,
        sha256=sha256_of(root / checkpoint) if checkpoint else "",
        info=info,
        keep=keep,
    )


def _metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that can be read, and how many can't."""
    if not path.is_file():
        return [], 0
    lines, damaged = [], 0
    for line in _readable(path, lambda: _bounded(path, _LARGEST)).splitlines():
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError
            lines.append(content)
        except (ValueError, RecursionError):
            damaged += 1
    return lines, damaged


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = _readable(path, lambda: yaml.safe_load(_bounded(path, _LARGEST_CONFIG)))
    return content if isinstance(content, dict) else {}


def _artifact(path: Path) -> Artifact | None:
    """A map or a mask; None for anything else."""
    description = describe(path)
    kind = None if description is None else description.kind
    if kind == MASK:
        mask = read_mask(path, _FLAG)
        return Artifact(path.name, sha256_of(path), mask.info, keep=mask.keep)
    if kind == ATTENTION_MAP:
        attention_map = read_attention_map(path, _FLAG)
        return Artifact(
            path.name, sha256_of(path), attention_map.info, attention=np.asarray(attention_map.attention)
        )
    if kind == CHECKPOINT and path.name in _CHECKPOINTS:
        raise VitcodError(f"{_FLAG} {path} is the checkpoint of a run; name its folder.")
    return None


def _bounded(path: Path, most: int) -> bytes:
    if path.stat().st_size > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return path.read_bytes()


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise VitcodError(f"{path} can't be read ({reason}); move it away, or mend it.") from error
