"""The folder of one run: settings, figures, and the weights worth keeping."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcod_cli.artifacts.files import atomic_path, remove_leftovers
from vitcod_cli.distributed import is_main, restarted
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
LAST, BEST, STATE = "last.safetensors", "best.safetensors", "state.safetensors"
BOUNDARY = "epoch.safetensors"  # see training/state.py


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings):
    """Where a run writes, and what it does when something is there already."""

    output_dir: str | None = setting(
        None, "Folder for checkpoints, figures and state.", panel="Output", metavar="FOLDER", show_default=False
    )
    overwrite: bool = setting(False, "Start afresh in a folder that isn't empty.", panel="Output")
    resume: bool = setting(False, "Go on with the run in the output folder.", panel="Output")


@dataclass(frozen=True)
class RunDirectory:
    """An opened run folder. Only the main process may write to it."""

    path: Path

    @classmethod
    def open(cls, settings: OutputSettings) -> RunDirectory:
        """Make or enter the folder that ``settings`` name.

        A folder that isn't empty is entered with ``resume`` and, with ``overwrite``, emptied of what
        a run writes (other files are left alone). A run that torchrun or SLURM has restarted goes on in
        its folder whatever ``settings`` say.

        Raises:
            VitcodError: if no folder is named, it can't be made, or it isn't empty and neither
                ``resume`` nor ``overwrite`` is set.
        """
        if settings.output_dir is None:
            raise VitcodError("--output-dir is needed: name a folder for the results.")
        if settings.resume and settings.overwrite:
            raise VitcodError("--resume and --overwrite exclude each other: go on with the run, or start afresh.")
        path = Path(settings.output_dir)
        if not is_main():  # it would see what the main process has written meanwhile
            return cls(path)
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
        run = cls(path)
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

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.yaml``: everything the run was started with."""
        import yaml

        with atomic_path(self.path / CONFIG) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def log(self, **figures: Any) -> None:
        """Append one line to ``metrics.jsonl``, in place of half a line that a killed process left."""
        path = self.path / METRICS
        try:
            with open(path, "a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.write(json.dumps(figures).encode() + b"\n")
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
