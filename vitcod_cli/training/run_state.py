"""How far a run has come, and the file that ``--resume`` goes on from: what it holds, when it is written and read.

``state.safetensors`` holds the tensors of :class:`~vitcod_cli.training.trained.Trained` by name. Its
metadata holds the other values of these, the :class:`~vitcod_cli.training.position.Position`, the
hyper-parameters, the order of the images, and which launch saved it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.artifacts.describe import RUN_STATE
from vitcod_cli.artifacts.files import atomic_path
from vitcod_cli.artifacts.run_files import BOUNDARY
from vitcod_cli.artifacts.safetensors_file import open_safetensors, read_safetensors_info, write_safetensors
from vitcod_cli.errors import DamagedFileError, VitcodError
from vitcod_cli.reporting import Reporter
from vitcod_cli.settings import Settings, settings_of
from vitcod_cli.training.position import Position
from vitcod_cli.training.trained import FLAG, Trained, check_values, shown

# What changes neither the weights nor the metrics.
_HARMLESS = {
    "save_every",
    "log_to",
    "eval_batch_size",
    "eval_every",
    "max_steps",
    "device",
    "threads",
    "skip_nonfinite",
    "nproc_per_node",
}


class StateFile:
    """``state.safetensors`` of a run folder, and beside it the state at the last epoch boundary.

    While the newest state lies inside an epoch, ``epoch.safetensors`` keeps the one before it
    that lies between epochs, for a resume on another number of processes.
    """

    def __init__(self, path: Path, before_replace: Callable[[], None] | None = None) -> None:
        """``before_replace``: called when a new state is whole, just before it takes the old one's place."""
        self.path, self._before_replace = path, before_replace
        self.boundary_path = path.with_name(BOUNDARY)
        self._written: Position | None = None

    def exists(self) -> bool:
        """Whether there is a state to go on from."""
        return self.path.exists()

    def write(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any], position: Position) -> None:
        """Replace the state by a newer one; until that is whole, the older one stays.

        Raises:
            VitcodError: if it can't be written (disk full, say).
        """
        if not position.between_epochs and self.exists() and self.newest().between_epochs:
            self._keep_boundary()
        write_safetensors(
            self.path, tensors, RUN_STATE, {**info, "position": asdict(position)}, self._before_replace
        )
        self._written = position
        if position.between_epochs:
            self.boundary_path.unlink(missing_ok=True)

    def _keep_boundary(self) -> None:
        with atomic_path(self.boundary_path) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(self.path, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.path, temporary)

    def newest(self) -> Position:
        """What :meth:`position` says, without reading what this process has written itself."""
        return self._written or self.position()

    def info(self, *, boundary: bool = False) -> dict[str, Any]:
        """The JSON part of the state, which has all parts of one and nothing strange in them.

        Raises:
            VitcodError: if it is damaged, or not that of a state.
        """
        path = self._choose(boundary)
        with self.explaining(path):
            info = read_safetensors_info(path, kind=RUN_STATE, flag=FLAG)
            Position.from_dict(info.get("position"))
            check_values(info)
            for part in ("hyper_parameters", "order"):
                if not isinstance(info.get(part), dict):
                    raise ValueError(f"its {part} can't be understood")
        return info

    def position(self, *, boundary: bool = False) -> Position:
        """How far the saved run has come."""
        return Position.from_dict(self.info(boundary=boundary)["position"])

    def tensors(self, *, boundary: bool = False) -> dict[str, Tensor]:
        """The tensors of the state, on the CPU."""
        path = self._choose(boundary)
        with self.explaining(path), open_safetensors(path, flag=FLAG, framework="pt") as file:
            return {name: file.handle.get_tensor(name) for name in file.handle.keys()}  # noqa: SIM118

    @contextmanager
    def explaining(self, path: Path | None = None) -> Iterator[None]:
        """What is wrong with a state as a sentence that says what to do about it."""
        path = path or self.path
        try:
            yield
        except DamagedFileError as error:
            what, _, _ = str(error).rpartition("; ")
            raise VitcodError(f"{what}; {self._way_on(path)}.") from error
        except ValueError as error:
            raise VitcodError(f"{FLAG} {path} is damaged ({error}); {self._way_on(path)}.") from error

    def _way_on(self, path: Path) -> str:
        other = ""
        if path == self.path and self.boundary_path.exists():
            other = f"put {self.boundary_path} in its place to go on from the last epoch, or "
        return f"{other}start afresh with --overwrite"

    def _choose(self, boundary: bool) -> Path:
        return self.boundary_path if boundary and self.boundary_path.exists() else self.path


@dataclass
class RunState:
    """Saves the state of a run on rank 0 (the other processes hold the same), and reads it back on all.

    Attributes:
        trained: the model and optimizer whose state it is.
        hyper_parameters: :func:`hyper_parameters` of this run.
        order: what the images of each step depend on; a run whose order is another one can only go
            on between epochs.
        minutes: between two saves within an epoch.
        steps: of an epoch.
        launches: see :class:`~vitcod_cli.artifacts.run_directory.RunDirectory`.
        check: called before anything is written; writing would make a folder that was removed anew.
    """

    file: StateFile
    trained: Trained
    hyper_parameters: Mapping[str, Any]
    order: Mapping[str, Any]
    minutes: float
    steps: int | None = None
    launches: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[], None] = lambda: None
    _last: float = field(default_factory=time.monotonic)

    def save(self, position: Position) -> None:
        """Save the state at ``position``.

        Raises:
            VitcodError: if it can't be written, or the weights aren't finite: a good state is never
                replaced by a broken one.
        """
        if distributed.is_main():
            self.check()
            if not self.trained.is_finite():
                raise VitcodError(
                    f"The weights are not finite after step {position.step} of epoch {position.epoch + 1}. "
                    f"{self.last_good()} Go on from it with --resume and a lower --lr, or --clip-grad."
                )
            options = {"hyper_parameters": self.hyper_parameters, "order": self.order, "launches": self.launches}
            self.file.write(self.trained.tensors(), {**self.trained.values(), **options}, position)
        self._last = time.monotonic()

    def save_if_due(self, position: Position) -> None:
        """Save when ``minutes`` have passed since the last time."""
        if time.monotonic() - self._last >= 60 * self.minutes:
            self.save(position)

    def last_good(self) -> str:
        """Where the last saved state is, in a sentence."""
        if not self.file.exists():
            return "No state was saved before it."
        return f"The last good state, from {self.file.newest()}, is in {self.file.path}."

    def load(self, reporter: Reporter) -> Position:
        """Put the saved state into ``trained``, say from where the run goes on, and return that.

        Raises:
            VitcodError: if it can't be read or is another model's.
        """
        if not self.file.exists():
            raise VitcodError(
                f"{FLAG}: {self.file.path} isn't there for this process; --output-dir must be a folder that all "
                "machines of the run share."
            )
        info = self.file.info()
        other_order = differences(info["order"], self.order)
        back = bool(other_order) and not Position.from_dict(info["position"]).between_epochs
        if back:
            info = self.file.info(boundary=True)
        position = Position.from_dict(info["position"])
        with self.file.explaining():
            self._check_step(position, other_order)
            self.trained.load(self.file.tensors(boundary=back), info)

        if back:
            reporter.warn(
                f"Each step sees other images than before: {', '.join(other_order)}. So the run goes back to "
                f"{position}; the steps after it are trained again."
            )
        reporter.info(f"Going on from {position} ({self.file.path}).")
        changed = differences(info["hyper_parameters"], self.hyper_parameters)
        if not back:
            changed = [text for text in other_order if text not in changed] + changed
        if changed:
            reporter.warn(f"{FLAG} with other hyper-parameters than the run had: {', '.join(changed)}.")
        return position

    def _check_step(self, position: Position, other_order: list[str]) -> None:
        if other_order and not position.between_epochs:
            raise VitcodError(
                f"{FLAG}: each step sees other images than before ({', '.join(other_order)}), and "
                f"{self.file.boundary_path}, the state between two epochs, is gone; give the same options as then."
            )
        if not position.between_epochs and self.steps is not None and position.step >= self.steps:
            raise ValueError(f"an epoch has {self.steps} steps, not {position.step}")


def hyper_parameters(*settings: Settings) -> dict[str, Any]:
    """What a run was trained with, by option, as JSON values."""
    return {
        info.flag: _json(getattr(group, name))
        for group in settings
        for name, info in settings_of(type(group)).items()
        if name not in _HARMLESS
    }


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``--lr 0.001 (was 0.0001)`` for each hyper-parameter that isn't what it was."""
    return [
        f"{flag} {value} (was {shown(then[flag])})"
        for flag, value in now.items()
        if flag in then and then[flag] != value
    ]
