"""One command line in a forked child: its own streams, limits on time and memory, no network, no privileges."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SECONDS = float(os.environ.get("VITCOD_FUZZ_SECONDS", "20"))
"""What a case may take."""

MEGABYTES = 1024
"""What the resident memory of a case may grow by."""

_ADDRESS_SPACE = 6 << 30  # growth of the address space that fails at once: it protects the machine


class Ran(NamedTuple):
    """How a child ended: exit code (negative: the signal), seconds, growth of its memory in MB, what it said."""

    code: int
    seconds: float
    megabytes: float
    hung: bool
    out: bytes
    err: bytes


def run_forked(words: list[str], folder: Path, file_limit: int = 0) -> Ran:
    """The command line in a fork of this process, which has imported everything already."""
    start, streams = time.monotonic(), _Streams()
    pid = os.fork()
    if pid == 0:
        _child(words, folder, streams.ends, file_limit)
    status, usage, hung = _wait(pid, start, streams)
    growth = usage.ru_maxrss / 1024 - _anonymous()
    return Ran(os.waitstatus_to_exitcode(status), time.monotonic() - start, growth, hung, *streams.close())


def run_process(words: list[str], folder: Path) -> Ran:
    """The command line as a process of its own, as a shell starts it."""
    start, streams = time.monotonic(), _Streams()
    process = subprocess.Popen(
        [sys.executable, "-m", "vitcod_cli", *map(os.fsencode, words)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=streams.ends[0],
        stderr=streams.ends[1],
        start_new_session=True,
        preexec_fn=_give_up_privileges,  # noqa: PLW1509  # a worker has one thread
    )
    status, _, hung = _wait(process.pid, start, streams, 3 * SECONDS)  # importing torch takes seconds
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ran(process.returncode, time.monotonic() - start, 0.0, hung, *streams.close())


class _Streams:
    """Pipes for stdout and stderr: unlike files, a limit on the size of files does not reach them."""

    def __init__(self) -> None:
        pipes = [os.pipe(), os.pipe()]
        self.ends = (pipes[0][1], pipes[1][1])
        self._readers = [read for read, _ in pipes]
        self._said: list[list[bytes]] = [[], []]
        for reader in self._readers:
            os.set_blocking(reader, False)

    def drain(self) -> None:
        """Take what is there, so that nobody waits for a reader."""
        for reader, said in zip(self._readers, self._said, strict=True):
            with suppress(BlockingIOError):
                while data := os.read(reader, 1 << 16):
                    said.append(data)

    def close(self) -> tuple[bytes, bytes]:
        """All that was said."""
        self.drain()
        for descriptor in (*self.ends, *self._readers):
            os.close(descriptor)
        return b"".join(self._said[0]), b"".join(self._said[1])


def _child(words: list[str], folder: Path, streams: tuple[int, int], file_limit: int) -> NoReturn:
    code: Any = 70
    try:
        os.setsid()
        os.chdir(folder)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        faulthandler.enable(sys.stderr)
        _give_up_privileges()
        _cut_network()
        limit = _statm()[0] + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if file_limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
        from vitcod_cli.cli.main import main

        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        for text in (sys.stdout, sys.stderr):
            try:
                text.flush()
            except Exception:
                code = 71
        os._exit(code if isinstance(code, int) else 72)


def _wait(
    pid: int, start: float, streams: _Streams, seconds: float = SECONDS
) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a child; one that takes too long says where it is (faulthandler), and is killed."""
    hung, pause = False, 0.0005
    while True:
        streams.drain()
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > seconds:
            hung = True
            os.kill(pid, signal.SIGABRT)
            time.sleep(0.5)
            _kill_group(pid)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    _kill_group(pid)  # whatever it has started
    return status, usage, hung


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _statm() -> list[int]:
    with open("/proc/self/statm", encoding="ascii") as file:
        return [int(pages) * resource.getpagesize() for pages in file.read().split()]


def _anonymous() -> float:
    """MB of this process that a fork begins with; pages of files it maps anew as it meets them."""
    _, resident, shared, *_ = _statm()
    return (resident - shared) / (1 << 20)


def _cut_network() -> None:
    """Whoever asks for an address or a connection is heard of on stderr."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        os.write(2, b"NETWORK\n")
        raise OSError("no network")

    socket.getaddrinfo = refuse
    socket.socket.connect = refuse  # type: ignore[method-assign]


def _give_up_privileges() -> None:
    """Have file permissions mean something to root too (on Linux): no user runs this as root."""
    if os.geteuid() != 0 or platform.system() != "Linux":
        return
    override, search = 1, 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for index in range(3):  # effective, permitted, inheritable: the low words
        sets[index] &= ~(1 << override | 1 << search)
    for capability in (override, search):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: a program that it starts has them neither
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")
