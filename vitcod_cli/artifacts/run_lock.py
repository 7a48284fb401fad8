"""One run at a time in a folder: a lock file that says who holds it, and that a dead run does not keep.

It is made with ``link``, which fails where there is one already, on network file systems too (``flock``
doesn't everywhere). Whether its holder lives is seen from the process, on the same machine, and elsewhere from
the file's time, which the holder renews every :data:`BEAT` seconds.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vitcod_cli.artifacts.lock_holder import Holder, machine, read_holder
from vitcod_cli.errors import VitcodError

LOCK = "vitcod.lock"
BEAT = 15.0
"""Seconds between two renewals of the lock file's time."""
STALE = 300.0
"""Seconds without one after which a run on another machine counts as dead."""
_PATIENCE = 30.0
"""Seconds that a restarted run gives the process before it to die."""
_POLL = 0.2


def is_lock(name: str) -> bool:
    """Whether a file of this name is a lock, or one in the making."""
    return name == LOCK or name.startswith(f".{LOCK}.")


@dataclass(frozen=True)
class _Seen:
    """A lock file as it was found.

    Attributes:
        token: another one for each lock that was ever made.
        holder: None where the file says nothing that can be read.
        touched: its time, in seconds.
    """

    token: str
    holder: Holder | None
    touched: float

    @property
    def ended(self) -> bool | None:
        """Whether the run that made it has ended, None if its process can't be seen from here."""
        return None if self.holder is None else self.holder.has_ended()


class _HeldError(Exception):
    def __init__(self, seen: _Seen) -> None:
        self.seen = seen


class RunLock:
    """A lock that this process holds, from :meth:`acquire` to :meth:`release`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._folder = folder
        program = Path(sys.argv[0]).name.replace("__main__.py", "vitcod")
        self._holder = Holder.this_process(shlex.join([program, *sys.argv[1:]]))
        self._ended = threading.Event()

    @classmethod
    def acquire(cls, folder: Path, *, wait: bool = False, say: Callable[[str], None] = lambda _: None) -> RunLock:
        """Lock ``folder``, which exists.

        Of several runs that try at once, one succeeds. The lock of a run that has ended is taken over.

        Args:
            wait: give a holder that may be dying the time to do so, as when a launcher restarts a run.
            say: told when a lock is taken over or waited for.

        Raises:
            VitcodError: if another run holds it, or the folder can't be written to.
        """
        lock = cls(folder)
        try:
            before = lock._seize_patiently(wait, say)
            lock._clean()
        except OSError as error:
            raise VitcodError(
                f"--output-dir {folder} can't be written to ({error.strerror}); choose another folder."
            ) from error
        if before is not None:
            say(f"The run that was in {folder} before ({_who(before.holder)}) has ended without a word.")
        threading.Thread(target=lock._beat, name="vitcod lock", daemon=True).start()
        return lock

    def check(self) -> None:
        """See that the lock is still ours.

        Raises:
            VitcodError: if the folder has gone, or another run took the lock over (after a long stop, say).
        """
        try:
            seen = self._look(self.path)
            if seen is None and self._folder.is_dir() and self._create(self.path):
                return  # somebody removed the file alone
        except OSError:
            return  # a network file system that is away for a moment; writing will tell
        if seen is not None and seen.token == self._holder.token:
            return
        if not self._folder.is_dir():
            raise VitcodError(f"--output-dir {self._folder} was removed while the run went on; start it again.")
        raise VitcodError(
            f"Another run has taken over --output-dir {self._folder} meanwhile; this one stops, so that they "
            "don't mix."
        )

    def release(self) -> None:
        """Remove the lock, if it is still ours."""
        self._ended.set()
        with suppress(OSError):
            seen = self._look(self.path)
            if os.getpid() == self._holder.pid and seen is not None and seen.token == self._holder.token:
                self.path.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):
                seen = self._look(self.path)
                if seen is not None and seen.token == self._holder.token:
                    os.utime(self.path)

    # -- taking it ----------------------------------------------------------------------------

    def _seize_patiently(self, wait: bool, say: Callable[[str], None]) -> _Seen | None:
        deadline, first = time.monotonic() + _PATIENCE, None
        while True:
            try:
                return self._seize(self.path)
            except _HeldError as error:
                seen = error.seen
                # On this machine its process is seen to live; elsewhere a renewal of the file's time shows it.
                lives = time.monotonic() > deadline if seen.ended is False else first not in (None, seen.touched)
                if lives or not wait:
                    raise VitcodError(self._refusal(seen)) from None
                if first is None:
                    say(f"Waiting for the run in {self._folder} ({_who(seen.holder)}) to end.")
                first = seen.touched
            time.sleep(_POLL)

    def _seize(self, path: Path) -> _Seen | None:
        """Make the lock file ``path``; returns that of a dead run in whose place it is.

        The right to replace a dead run's lock is a lock itself, whose name has that lock's token: so nobody
        replaces a lock that he hasn't seen.
        """
        while True:
            if self._create(path):
                return None
            seen = self._look(path)
            if seen is None:
                continue
            if not self._is_stale(seen):
                raise _HeldError(seen)
            right = self._folder / f".{LOCK}.{seen.token}"
            self._seize(right)
            try:
                again = self._look(path)
                if again is not None and again.token == seen.token:
                    os.replace(self._written(), path)
                    return seen
            finally:
                right.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        """Make ``path`` unless it is there; it is never seen half-written."""
        temporary = self._written()
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink == 2  # it was us: a network may lose the answer
        except OSError:  # a file system without links
            return self._create_plainly(path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _create_plainly(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        self._fill(descriptor, path)
        return True

    def _written(self) -> Path:
        """A file of our own beside the lock, with what the lock is to say."""
        descriptor, name = tempfile.mkstemp(prefix=f".{LOCK}.", suffix=".tmp", dir=self._folder)
        os.chmod(name, 0o644)  # others must be able to see whose it is
        self._fill(descriptor, Path(name))
        return Path(name)

    def _fill(self, descriptor: int, path: Path) -> None:
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self._holder.to_json())
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _look(self, path: Path) -> _Seen | None:
        """The lock file ``path`` as it is now, None if there is none."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise VitcodError(f"{path} is no file that vitcod made; move it away, or name another --output-dir.")
        holder = read_holder(path)
        token = f"{status.st_ino:x}-{status.st_mtime_ns:x}" if holder is None else holder.token
        return _Seen(token, holder, status.st_mtime)

    def _is_stale(self, seen: _Seen) -> bool:
        # A living run's time is never far from now, in neither direction.
        return abs(self._now() - seen.touched) > STALE if seen.ended is None else seen.ended

    def _now(self) -> float:
        """The time by the clock that stamps the files: that of this machine may be another."""
        with tempfile.NamedTemporaryFile(prefix=f".{LOCK}.", suffix=".tmp", dir=self._folder) as file:
            return os.stat(file.name).st_mtime

    def _clean(self) -> None:
        """Remove what runs that were killed while they tried to lock have left."""
        now = self._now()
        for leftover in self._folder.glob(f".{LOCK}.*"):
            with suppress(OSError):
                if self._holder.token not in leftover.name and abs(now - leftover.lstat().st_mtime) > STALE:
                    leftover.unlink()

    def _refusal(self, seen: _Seen) -> str:
        if seen.holder is not None and seen.ended is False and seen.holder.pid == os.getpid():
            return (
                f"--output-dir {self._folder} is in use by another run of this very process; name another folder."
            )
        return (
            f"--output-dir {self._folder} is in use by another run ({_who(seen.holder)}); wait for its end or "
            f"name another folder, or delete {self.path} if you know that it has ended."
        )


def _who(holder: Holder | None) -> str:
    if holder is None:
        return "which doesn't say who it is"
    host = "" if holder.host == machine().host else f" on {holder.host}"
    return f"process {holder.pid}{host}, since {holder.since}: {holder.command}"
