"""Names of temporary folders, which tell whether their writer is still alive."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

SUFFIX = ".tmp"
_NAME = re.compile(r"\..*\.vitcod-(?:([0-9a-f]{8})-(\d+)-(\d+)-)?[^-]*\.tmp", re.DOTALL)
_DAY = 24 * 60 * 60.0


def prefix_for(name: str) -> str:
    """How the temporary folder of a file called ``name`` begins: ``.NAME.vitcod-MACHINE-PID-START-``."""
    while len(os.fsencode(name)) > 80:  # all of it must fit into the 255 bytes (on some disks 143) of a name
        name = name[:-1]
    return f".{name}.vitcod-{_machine()}-{os.getpid()}-{_state_of(os.getpid())[1]}-"


def is_abandoned(folder: Path) -> bool:
    """Whether ``folder`` is a temporary one of ours whose writer is dead.

    A writer on another machine can't be asked: it is taken for dead when it wrote nothing for a day.
    """
    match = _NAME.fullmatch(folder.name)
    if match is None or folder.is_symlink() or not folder.is_dir():
        return False
    if match[1] == _machine():
        return not _is_alive(int(match[2]), match[3])
    with suppress(OSError):
        newest = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
        return time.time() - newest > _DAY
    return False


@cache
def _machine() -> str:
    """Stands for all processes that have the same numbers: of a host, since it was started, in one container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()[:8]


def _is_alive(pid: int, start: str) -> bool:
    """Whether process ``pid`` runs that began at ``start``; another one may have got its number since."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # somebody else's
    except (OSError, OverflowError):
        return False
    state, since = _state_of(pid)
    ended = state in ("Z", "X")  # and only its parent has not asked yet
    return not ended and (since == start or "0" in (since, start))


def _state_of(pid: int) -> tuple[str, str]:
    """State and start (in ticks since the machine's) of a process; start is 0 where it can't be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), str(int(fields[19]))
    except (OSError, IndexError, ValueError):
        return "?", "0"
