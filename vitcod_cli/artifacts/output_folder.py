"""The folder that ``--output-dir`` names: made, locked, and entered only if the user said so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vitcod_cli.artifacts.run_files import is_filled
from vitcod_cli.artifacts.run_lock import RunLock
from vitcod_cli.distributed import is_main, on_main
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter
from vitcod_cli.restarts import restarted
from vitcod_cli.settings import Settings, required, setting


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Settings, panel="Output"):
    """Where a run writes, and what it does when something is there already."""

    output_dir: str = required(
        "Folder for checkpoints, metrics and state.", "name a folder for the results.", metavar="FOLDER"
    )
    overwrite: bool = setting(False, "Start afresh in a folder that isn't empty.")
    resume: bool = setting(False, "Go on with the run in the output folder.")


def check_output(settings: OutputSettings) -> None:
    """Refuse at once what :meth:`RunDirectory.open` would refuse later, as far as it can be seen.

    Raises:
        VitcodError: if the folder can't be used.
    """
    if settings.resume and settings.overwrite:
        raise VitcodError("--resume and --overwrite exclude each other: go on with the run, or start afresh.")
    path = Path(settings.output_dir)

    def look() -> None:
        if os.path.lexists(path) and not restarted():
            check_filled(path, settings, goes_on=False)

    on_main(look)


@contextmanager
def locked_folder(path: Path, reporter: Reporter) -> Iterator[None]:
    """Keep other runs out of ``path``, which is made if need be, for the time of the block.

    Raises:
        VitcodError: if it can't be made or written to, or another run is using it.
    """
    if not is_main():
        yield
        return
    lock = lock_folder(path, make_folder(path), reporter)
    try:
        yield
    finally:
        lock.release()


def make_folder(path: Path) -> bool:
    """Make the folder; returns whether it is new."""
    with _folder_errors(path):
        new = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        return new


def lock_folder(path: Path, made: bool, reporter: Reporter, *, wait: bool = False) -> RunLock:
    """Lock the folder; where that can't be, one that was ``made`` for it goes again."""
    try:
        return RunLock.acquire(path, wait=wait, say=reporter.info)
    except VitcodError:
        if made:
            with suppress(OSError):
                path.rmdir()
        raise


def check_filled(path: Path, settings: OutputSettings, goes_on: bool) -> None:
    """Raise a VitcodError if the folder holds something, and neither ``settings`` nor ``goes_on`` allow for it."""
    with _folder_errors(path):
        filled = is_filled(path)
    if filled and not (settings.resume or settings.overwrite or goes_on):
        raise VitcodError(
            f"--output-dir {path} is not empty; go on with the run in it with --resume, start afresh in it "
            "with --overwrite, or name another folder."
        )


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        what = "a link that leads nowhere" if path.is_symlink() else "a file"
        raise VitcodError(f"--output-dir {path} is {what}; name a folder.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"--output-dir {str(path)!r} can't be made or read ({reason}); choose another folder."
        raise VitcodError(message) from error
