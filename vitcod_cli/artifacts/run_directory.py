"""The folder of one run: its config, metrics and checkpoints, and the state that ``--resume`` reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path, remove_leftovers
from vitcod_cli.distributed import from_main, is_main, restarted
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter
from vitcod_cli.settings import Settings, required, setting

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
LAST, BEST, STATE = "last.safetensors", "best.safetensors", "state.safetensors"
BOUNDARY = "epoch.safetensors"
"""The last state between two epochs, while the newest one lies inside an epoch."""
CALIBRATION = "calibration.safetensors"
"""The finished blocks of a calibration, until there is a state."""
_OF_A_RUN = (CONFIG, METRICS, LAST, BEST, STATE, BOUNDARY, CALIBRATION, "wandb-id.txt", "tensorboard")


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings, panel="Output"):
    """Where a run writes, and what it does when something is there already."""

    output_dir: str = required(
        "Folder for checkpoints, metrics and state.", "name a folder for the results.", metavar="FOLDER"
    )
    overwrite: bool = setting(False, "Start afresh in a folder that isn't empty.")
    resume: bool = setting(False, "Go on with the run in the output folder.")


@dataclass
class RunDirectory:
    """An opened run folder. Only the main process may write to it.

    What a run has left that this one replaces stays until the first new file is whole: :meth:`begin`.

    Attributes:
        resumes: whether the run goes on from the state in the folder, the same in every process. It
            does when there is one and ``--resume`` was given, or torchrun or SLURM has restarted the
            run. What would be thrown away then (a calibration, say) need not be computed.
        resumes_calibration: whether it goes on from the calibration in the folder, which ended before
            there was a state.
    """

    path: Path
    resumes: bool = False
    resumes_calibration: bool = False
    _begun: bool = False
    _config: dict[str, Any] | None = None
    _lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, settings: OutputSettings, reporter: Reporter) -> RunDirectory:
        """Make or enter the folder that ``settings`` name; all processes of a run do it together.

        A folder that isn't empty is entered with ``resume`` and, with ``overwrite``, emptied of what
        a run writes (other files are left alone) by :meth:`begin`. A run that torchrun or SLURM has
        restarted goes on in its folder whatever ``settings`` say.

        Raises:
            VitcodError: if the folder can't be made, or it isn't empty and neither
                ``resume`` nor ``overwrite`` is set.
        """
        if settings.resume and settings.overwrite:
            raise VitcodError("--resume and --overwrite exclude each other: go on with the run, or start afresh.")
        path = Path(settings.output_dir)
        if is_main():  # the others would see what it has written meanwhile
            _enter(path, settings)
        goes_on = settings.resume or restarted()
        resumes = from_main(goes_on and (path / STATE).exists())
        calibration = from_main(goes_on and not resumes and (path / CALIBRATION).exists())
        if settings.resume and not (resumes or calibration):
            reporter.info(f"There is no saved state in {path}: starting from the beginning.")
        return cls(path, resumes, calibration, _begun=resumes or calibration)

    def begin(self) -> None:
        """Remove what an earlier run has left, and write what this one has held back: config and metrics.

        Called when the first file to go on from is whole, just before it takes its place (``before_replace``
        of :func:`atomic_path`); further calls do nothing.
        """
        if self._begun or not is_main():
            return
        self._begun = True
        _remove(self.path, *_OF_A_RUN)
        if self._config is not None:
            self._write_config(self._config)
        for line in self._lines:
            self.log(**line)

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the highest Acc@1."""
        return self.path / BEST

    @property
    def state(self) -> Path:
        """What ``--resume`` needs."""
        return self.path / STATE

    @property
    def calibration(self) -> Path:
        """The blocks that a calibration has finished; gone when there is a state."""
        return self.path / CALIBRATION

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.yaml``, everything the run was started with, as soon as the run has begun."""
        if not is_main():
            return
        if self._begun:
            self._write_config(config)
        else:
            self._config = config

    def _write_config(self, config: dict[str, Any]) -> None:
        import yaml

        with atomic_path(self.path / CONFIG) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def log(self, **metrics: Any) -> None:
        """Append one line to ``metrics.jsonl``, in place of half a line that a killed process left.

        Before the run has begun, lines are held back.
        """
        if not is_main():
            return
        if not self._begun:
            self._lines.append(metrics)
            return
        path = self.path / METRICS
        try:
            with open(path, "a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.write(json.dumps(metrics).encode() + b"\n")
        except OSError as error:
            raise VitcodError(
                f"Can't write {path} ({error.strerror}); free some space and go on with --resume."
            ) from error

    def keep_epochs(self, epochs: int) -> None:
        """Keep in ``metrics.jsonl`` the lines of the first ``epochs`` epochs; the others are trained again.

        Lines without an epoch (of a calibration, say) stay; a line that a killed process left
        unfinished goes.
        """
        path = self.path / METRICS
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _is_kept(line, epochs)]
        if kept != lines:
            with atomic_path(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _enter(path: Path, settings: OutputSettings) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        filled = any(path.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise VitcodError(f"--output-dir {path} is a file; name a folder.") from error
    except OSError as error:
        message = f"--output-dir {path} can't be made or read ({error.strerror}); choose another folder."
        raise VitcodError(message) from error
    if filled and not (settings.resume or settings.overwrite or restarted()):
        raise VitcodError(
            f"--output-dir {path} is not empty; go on with the run in it with --resume, start afresh in it "
            "with --overwrite, or name another folder."
        )
    remove_leftovers(path)


def _remove(path: Path, *names: str) -> None:
    for name in names:
        leftover = path / name
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _is_kept(line: str, epochs: int) -> bool:
    try:
        metrics = json.loads(line)
    except ValueError:
        return False
    return not isinstance(metrics, dict) or not isinstance(metrics.get("epoch"), int) or metrics["epoch"] <= epochs
