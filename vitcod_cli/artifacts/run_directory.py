"""The folder of one run: settings, figures, and the weights worth keeping."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path, remove_leftovers
from vitcod_cli.distributed import from_main, is_main, restarted
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, required, setting

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
LAST, BEST, STATE = "last.safetensors", "best.safetensors", "state.safetensors"
BOUNDARY = "epoch.safetensors"  # see training/state.py


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
    """An opened run folder; only the main process writes to it.

    Attributes:
        resume: whether a saved state in it is to be gone on from.
    """

    path: Path
    resume: bool = False

    @classmethod
    def open(cls, settings: OutputSettings) -> RunDirectory:
        """Make or enter the folder that ``settings`` name.

        A folder that isn't empty is entered with ``resume`` and, with ``overwrite``, emptied of what
        a run writes (other files are left alone). A run that torchrun or SLURM has restarted goes on in
        its folder whatever ``settings`` say.

        Raises:
            VitcodError: if the folder can't be made, or it isn't empty and neither
                ``resume`` nor ``overwrite`` is set.
        """
        if settings.resume and settings.overwrite:
            raise VitcodError("--resume and --overwrite exclude each other: go on with the run, or start afresh.")
        path = Path(settings.output_dir)
        if not is_main():  # it would see what the main process has written meanwhile
            return cls(path, settings.resume or restarted())
        try:
            path.mkdir(parents=True, exist_ok=True)
            filled = any(path.iterdir())
        except (FileExistsError, NotADirectoryError) as error:
            raise VitcodError(f"--output-dir {path} is a file; name a folder.") from error
        except OSError as error:
            message = f"--output-dir {path} can't be made or read ({error.strerror}); choose another place."
            raise VitcodError(message) from error
        if filled and not (settings.resume or settings.overwrite or restarted()):
            raise VitcodError(
                f"--output-dir {path} is not empty; go on with the run in it with --resume, start afresh in it "
                "with --overwrite, or name another folder."
            )
        run = cls(path, settings.resume or restarted())
        remove_leftovers(path)
        if settings.overwrite and not restarted():
            run._clear()
        return run

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
    def resumes(self) -> bool:
        """Whether training goes on from a saved state, so that what comes before it is done already.

        That is so when one is there and ``--resume`` was given, or torchrun or SLURM has restarted the run.
        """
        return from_main(self.resume and self.state.exists())

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

    def _clear(self) -> None:
        for name in (CONFIG, METRICS, LAST, BEST, STATE, BOUNDARY):
            leftover = self.path / name
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
