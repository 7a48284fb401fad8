"""Who holds a lock: a process, on a machine, and whether it has ended."""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_LONGEST = 1 << 16
_LONGEST_COMMAND = 100


class Machine(NamedTuple):
    """Where a process number means something: the host, its boot, and the namespace (a container has its own)."""

    host: str
    boot: str
    namespace: str


@dataclass(frozen=True)
class Holder:
    """The process that a lock file names.

    Attributes:
        token: another one for each lock.
        started: when the process began, as the system counts; a number may be given anew.
        since: local time of the lock, for people.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    command: str
    since: str

    @classmethod
    def this_process(cls, command: str) -> Holder:
        """This process, with a new token."""
        pid, since = os.getpid(), datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(uuid.uuid4().hex, *machine(), pid, _started(pid) or "", _shown(command), since)

    def to_json(self) -> str:
        """The inverse of :func:`read_holder`."""
        return json.dumps(asdict(self)) + "\n"

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None where that can't be seen from here."""
        if os.name != "posix" or (self.host, self.boot, self.namespace) != machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # another user's
        started = _started(self.pid)
        return started is not None and started != self.started


def read_holder(path: Path) -> Holder | None:
    """The holder that a lock file names; None if it can't be read, or there is no such file."""
    try:
        # Neither a link nor a pipe that was put there is followed.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            values = json.loads(file.read(_LONGEST))
        holder = Holder(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = {name: value for name, value in values.items() if name != "pid"}
    if not all(isinstance(value, str) for value in texts.values()) or not re.fullmatch(
        r"[0-9a-f]{32}", holder.token
    ):
        return None
    if type(holder.pid) is not int or not 0 < holder.pid < 2**31:
        return None
    return Holder(**{name: _shown(value) for name, value in texts.items()}, pid=holder.pid)


@lru_cache(maxsize=1)
def machine() -> Machine:
    """The machine of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""
    return Machine(socket.gethostname(), boot, namespace)


def _started(pid: int) -> str | None:
    """When process ``pid`` began; empty if it has ended and only waits to be noticed, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _shown(text: str) -> str:
    """Text of a file that a stranger may have written, fit for a message."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 3] + "..."
