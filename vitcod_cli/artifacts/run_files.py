"""The files of a run folder by name: which of them are a run's, and how an earlier run's are removed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vitcod_cli.artifacts.run_lock import is_lock
from vitcod_cli.errors import VitcodError

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
TABLE = "metrics.csv"
"""The epochs of ``metrics.jsonl``, made of it anew whenever that changes."""
LAST, BEST, STATE = "last.safetensors", "best.safetensors", "state.safetensors"
BOUNDARY = "epoch.safetensors"
"""The last state between two epochs, while the newest one lies inside an epoch."""
CALIBRATION = "calibration.safetensors"
"""The finished blocks of a calibration, until there is a state."""
CARD = "README.md"
"""The model's card, if :data:`CARD_MARK` is in it; else it is somebody's own."""
CARD_MARK = "<!-- written by vitcod; leave this line out, and vitcod will not replace the file -->"
WANDB_ID = "wandb-id.txt"
TENSORBOARD, WANDB = "tensorboard", "wandb"
# What a run can be continued from goes first: whatever is left of an old run is not taken for a whole one.
_REPLACED = (STATE, CALIBRATION, BOUNDARY, METRICS, TABLE, LAST, BEST)
_FILES = (*_REPLACED, CONFIG, WANDB_ID)
_LONGEST_CONFIG = 1 << 20


def is_filled(folder: Path) -> bool:
    """Whether ``folder`` holds anything but locks, and what a process that was killed while writing has left."""
    return any(not is_lock(path.name) and not path.match(".*.vitcod-*.tmp") for path in folder.iterdir())


def check_files(folder: Path) -> None:
    """Raise a VitcodError if what has the name of a file of a run isn't one, or is a link to somewhere else.

    A folder from a stranger could have a file of the user's replaced by such a link.
    """
    for path in (folder / name for name in _FILES):
        try:
            _check_inside(path, folder)
            regular = stat.S_ISREG(path.stat().st_mode)
        except FileNotFoundError:  # a link to nowhere is written through, too
            continue
        except OSError as error:
            raise VitcodError(f"{path} can't be read ({error.strerror}); name another --output-dir.") from error
        if not regular:
            what = "a folder" if path.is_dir() else "not a regular file"
            raise VitcodError(f"{path} is {what}; move it away, or name another --output-dir.")


def _check_inside(path: Path, folder: Path) -> None:
    target = os.path.realpath(path)
    if path.is_symlink() and os.path.commonpath([target, os.path.realpath(folder)]) != os.path.realpath(folder):
        raise VitcodError(
            f"{path} is a link to {target}, which would be replaced: put a file in its place (the folder itself "
            "may be a link), or name another --output-dir."
        )


def check_replaceable(folder: Path, sources: Mapping[str, str | None]) -> None:
    """See that a new run may take the place of what is in ``folder``.

    Args:
        sources: the files that the run reads, by option; they must not be among those that go.

    Raises:
        VitcodError: if a source would be deleted, or ``config.yaml`` is somebody else's.
    """
    for flag, source in sources.items():
        for path in (folder / name for name in _FILES):
            with suppress(OSError, ValueError):
                if source is not None and os.path.samefile(source, path):
                    raise VitcodError(
                        f"{flag} {source} is a file of the run that would be replaced; name another --output-dir, "
                        "or move the file out of it."
                    )
    config = folder / CONFIG
    if config.is_file() and not _is_ours(config):
        raise VitcodError(
            f"{config} would be replaced, and no run of vitcod wrote it; name another --output-dir, or move it "
            "away."
        )


def _is_ours(config: Path) -> bool:
    with suppress(OSError), open(config, "rb") as file:
        return any(line.startswith(b"about:") for line in file.read(_LONGEST_CONFIG).splitlines())
    return False


def is_our_card(path: Path) -> bool:
    """Whether a README was written here."""
    with suppress(OSError), open(path, "rb") as file:
        return CARD_MARK.encode() in file.read(1 << 16)
    return False


def remove_run(folder: Path) -> None:
    """Remove what an earlier run has left in ``folder``, but its config, which is replaced; other files stay."""
    for name in _REPLACED:
        remove_file(folder / name)
    if is_our_card(folder / CARD):
        (folder / CARD).unlink()
    _remove_logs(folder / TENSORBOARD, re.compile(r"events\.out\.tfevents\..*"))
    identity = wandb_id(folder)
    if identity is not None:
        _remove_logs(folder / WANDB, re.compile(rf"(offline-)?run-\d+_\d+-{identity}(\.wandb)?"))
    remove_file(folder / WANDB_ID)


def wandb_id(folder: Path) -> str | None:
    """The run of Weights & Biases that the run in ``folder`` is logged in, None if there is none."""
    with suppress(OSError, ValueError):
        text = (folder / WANDB_ID).read_text(encoding="ascii").strip()
        return text if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) else None
    return None


def remove_file(path: Path) -> None:
    """Remove a file; of a link, what it points to, for the new file goes there too."""
    Path(os.path.realpath(path)).unlink(missing_ok=True)


def _remove_logs(folder: Path, ours: re.Pattern[str]) -> None:
    """Remove what a logger wrote, and the folder when nothing else is in it; a logger's leftovers harm nobody."""
    import shutil

    with suppress(OSError):
        for path in list(folder.iterdir()):
            if ours.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif ours.fullmatch(path.name):
                path.unlink()
        for path in list(folder.iterdir()):
            if path.is_symlink() and not path.exists():  # wandb's latest-run
                path.unlink()
        folder.rmdir()
