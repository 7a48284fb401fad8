"""``calibration.safetensors``: what of a run's calibration is finished, for a run that is stopped in it.

It holds the weights of the student, and as metadata the reports so far and the fingerprint: everything
that the result depends on. The first state of the training takes its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.artifacts.describe import CALIBRATION
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.artifacts.safetensors_file import checked_kind, open_safetensors, write_safetensors
from vitcod_cli.calibration.fit import FitReport
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.families import Transformer
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime
from vitcod_cli.settings import Settings, settings_of
from vitcod_cli.signals import StopRequest

_FLAG = "--resume"
_HARMLESS = {"nproc_per_node", "threads"}


@dataclass
class SavedCalibration:
    """The finished part of a calibration, in memory and in the run's folder.

    Attributes:
        student: whose weights are saved.
        fingerprint: see :func:`fingerprint`.
        stop: is told where the finished part is saved.
        heads: metrics of the fit of the auto-encoders, one entry a layer; empty if there was none.
        blocks: reports of the fits that are finished.
        exists: whether anything is.
    """

    run: RunDirectory
    student: Transformer
    fingerprint: Mapping[str, Any]
    stop: StopRequest
    reporter: Reporter
    heads: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[FitReport] = field(default_factory=list)
    exists: bool = False

    def resume(self) -> None:
        """Load what the run in the folder has finished, if it goes on; the same in all processes.

        A file that can't be read, or that other settings have made, is left out with a warning.
        """
        if not self.run.resumes_calibration:
            return
        reports = distributed.on_main(self._load)
        if reports is None:
            self.run.start_anew()
            return
        self.heads, self.blocks = reports
        self.exists, self.stop.saved = True, self.run.calibration
        for parameter in self.student.parameters():
            distributed.broadcast(parameter.data)
        self.reporter.info(
            f"Going on with the calibration: {_count(self.blocks)} of {len(self.student.blocks)} blocks are "
            f"finished ({self.run.calibration})."
        )
        self.run.begin()
        self.run.rewrite_metrics([*self.heads, *(report.metrics() for report in self.blocks)])

    def add_heads(self, metrics: Sequence[dict[str, Any]]) -> None:
        """Save that the auto-encoders of all layers are fitted."""
        self.heads = list(metrics)
        self._save(self.heads)

    def add_fit(self, report: FitReport) -> None:
        """Save that one more fit is finished."""
        self.blocks.append(report)
        self._save([report.metrics()])

    def _save(self, lines: Sequence[dict[str, Any]]) -> None:
        if distributed.is_main():
            self.run.check()
            info = {
                "launches": self.run.launches,
                "fingerprint": self.fingerprint,
                "heads": self.heads,
                "blocks": [asdict(report) for report in self.blocks],
            }
            tensors = dict(self.student.named_parameters())
            write_safetensors(self.run.calibration, tensors, CALIBRATION, info, before_replace=self.run.begin)
        for line in lines:
            self.run.log(**line)
        self.exists, self.stop.saved = True, self.run.calibration

    def _load(self) -> tuple[list[dict[str, Any]], list[FitReport]] | None:
        """Load the file into the student, and return its reports; None, with a warning, if that can't be."""
        path = self.run.calibration
        try:
            with open_safetensors(path, flag=_FLAG, framework="pt") as file:
                info = checked_kind(file.info, path, kind=CALIBRATION, flag=_FLAG)
                tensors = {name: file.handle.get_tensor(name) for name in file.handle.keys()}  # noqa: SIM118
            if other := _differences(info.get("fingerprint"), self.fingerprint):
                raise VitcodError(f"{path} is of a calibration with {other}.")
            reports = _reports(info, len(self.student.blocks))
            if reports is None or not _fits(self.student, tensors):
                raise VitcodError(f"{path} is damaged.")
        except VitcodError as error:
            self.reporter.warn(f"{error} So the calibration starts from the beginning.")
            return None
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                parameter.copy_(tensors[name])
        return reports


def forget_calibration(run: RunDirectory, reporter: Reporter) -> None:
    """For a run without calibration: leave out one that the run in its folder has begun, and say so."""
    if run.resumes_calibration:
        reporter.warn(f"{run.calibration} is left out: this run has no calibration. It starts from the beginning.")
        run.start_anew()


def fingerprint(
    command: str,
    student: Transformer,
    teacher: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    *settings: Settings,
) -> dict[str, Any]:
    """Everything that the result of a calibration depends on, as JSON values by option or name.

    Args:
        student: before anything was fitted.
        settings: of calibration and, in step 1, of the auto-encoders.
    """
    options = {
        info.flag: getattr(group, name)
        for group in (*settings, runtime.settings)
        for name, info in settings_of(type(group)).items()
        if name not in _HARMLESS
    }
    checksums = distributed.gather_objects(images.checksum())
    values = {
        "command": command,
        **options,
        "--device": runtime.device.type,
        "--precision": str(runtime.dtype),
        "processes": distributed.world_size(),
        "weights or mask": checksum(student),
        "teacher": checksum(teacher),
        "images": hashlib.sha256("".join(checksums).encode()).hexdigest(),
    }
    return dict(json.loads(json.dumps(values)))


def checksum(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _differences(then: Any, now: Mapping[str, Any]) -> str:
    """``another --calibrate-lr, --seed``, or nothing."""
    if not isinstance(then, Mapping):
        return "unknown settings"
    names = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    return f"another {', '.join(names)}" if names else ""


def _reports(info: Mapping[str, Any], count: int) -> tuple[list[dict[str, Any]], list[FitReport]] | None:
    """The reports of heads and blocks in a file's metadata; None if it holds anything else."""
    try:
        heads = [dict(entry) for entry in info["heads"]]
        blocks = [FitReport(**entry) for entry in info["blocks"]]
    except (TypeError, ValueError, KeyError):
        return None
    numbers, joint = [report.block for report in blocks if report.block is not None], len(blocks) - _count(blocks)
    plain = all(isinstance(value, (int, float)) for report in blocks for value in (report.before, report.after))
    whole = (heads or blocks) and numbers == list(range(len(numbers))) and len(numbers) <= count and joint < 2
    whole = whole and plain
    return (heads, blocks) if whole else None


def _count(reports: Sequence[FitReport]) -> int:
    """Blocks that were fitted."""
    return sum(report.block is not None for report in reports)


def _fits(student: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether ``tensors`` are the student's parameters: names, shapes, types, and finite."""
    parameters = dict(student.named_parameters())
    return parameters.keys() == tensors.keys() and all(
        tensor.shape == parameters[name].shape
        and tensor.dtype == parameters[name].dtype
        and bool(torch.isfinite(tensor).all())
        for name, tensor in tensors.items()
    )
