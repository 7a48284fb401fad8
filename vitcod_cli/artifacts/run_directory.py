"""The folder of one run: its config, metrics and checkpoints, and the state that ``--resume`` reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings, panel="Output"):
    """Where a run writes, and what it does when something is there already."""

    output_dir: str = required(
        "Folder for checkpoints, metrics and state.", "name a folder for the results.", metavar="FOLDER"
    )
    overwrite: bool = setting(False, "Start afresh in a folder that isn't empty.")
    resume: bool = setting(False, "Go on with the run in the output folder.")


@dataclass(frozen=True)
class RunDirectory:
    """An opened run folder. Only the main process may write to it.

    Attributes:
        resumes: whether the run goes on from the state in the folder, the same in every process. It
            does when there is one and ``--resume`` was given, or torchrun or SLURM has restarted the
            run. What would be thrown away then (a calibration, say) need not be computed.
    """

    path: Path
    resumes: bool = False

    @classmethod
    def open(cls, settings: OutputSettings, reporter: Reporter) -> RunDirectory:
        """Make or enter the folder that ``settings`` name; all processes of a run do it together.

        A folder that isn't empty is entered with ``resume`` and, with ``overwrite``, emptied of what
        a run writes (other files are left alone). A run that torchrun or SLURM has restarted goes on in
        its folder whatever ``settings`` say. Without a state to go on from, the run begins anew, and so
        does its ``metrics.jsonl``.

        Raises:
            VitcodError: if the folder can't be made, or it isn't empty and neither
                ``resume`` nor ``overwrite`` is set.
        """
        if settings.resume and settings.overwrite:
            raise VitcodError("--resume and --overwrite exclude each other: go on with the run, or start afresh.")
        path = Path(settings.output_dir)
        if is_main():  # the others would see what it has written meanwhile
            _enter(path, settings)
        resumes = from_main((settings.resume or restarted()) and (path / STATE).exists())
        if is_main() and not resumes:
            _remove(path, METRICS)
        if settings.resume and not resumes:
            reporter.info(f"There is no saved state in {path}: starting from the beginning.")
        return cls(path, resumes)

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

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.yaml``: everything the run was started with."""
        if not is_main():
            return
        import yaml

        with atomic_path(self.path / CONFIG) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def log(self, **metrics: Any) -> None:
        """Append one line to ``metrics.jsonl``, in place of half a line that a killed process left."""
        if not is_main():
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
    if settings.overwrite and not restarted():
        _remove(path, CONFIG, METRICS, LAST, BEST, STATE, BOUNDARY)


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
