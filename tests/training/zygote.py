"""Real processes without the seconds that importing torch takes: a server that forks them.

Reads one JSON request a line: {"folder", "options", "environment", "log", "file_limit"}; each child
runs ``tiny.main`` in a session of its own. Answers with its pid, and later with how it ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Process:
    """A forked training."""

    def __init__(self, zygote: Zygote, pid: int, log: Path) -> None:
        self.zygote, self.pid, self.log = zygote, pid, log
        self._code: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """The exit code, as subprocess gives it, or None while it runs."""
        if self._code is None:
            self._code = self.zygote.ask({"poll": self.pid})
        return self._code

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"still running: {self.log.read_text()}")
            time.sleep(0.01)
        return code

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until ``text`` is in its output."""
        end = time.monotonic() + timeout
        while text not in self.log.read_text():
            assert self.poll() is None, f"ended before {text!r}: {self.log.read_text()}"
            assert time.monotonic() < end, f"no {text!r} in {self.log.read_text()}"
            time.sleep(0.005)


class Zygote:
    """The client's side."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._count = 0

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self, folder: Path, environment: Mapping[str, str] | None = None, file_limit: int = 0, **options: Any
    ) -> Process:
        """Train in ``folder``; ``file_limit`` bytes is the most that a file may grow to (0: no limit)."""
        self._count += 1
        log = folder.with_name(f"{folder.name}-{self._count}.log")
        log.touch()
        request = {"folder": str(folder), "options": json.dumps(options), "log": str(log)}
        request |= {"environment": dict(environment or {}), "file_limit": file_limit}
        return Process(self, self.ask(request), log)

    def run(self, folder: Path, **options: Any) -> Process:
        """Train in ``folder`` to the end."""
        process = self.start(folder, **options)
        code = process.wait()
        assert code == 0, process.log.read_text()
        return process

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


def _child(request: Mapping[str, Any]) -> None:
    os.setsid()
    descriptor = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(request["environment"])
    if request["file_limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    import tiny

    code: object = 1
    try:
        code = tiny.main(request["folder"], request["options"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _serve() -> None:
    import tiny  # noqa: F401  # what takes so long

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = None if pid == 0 else os.waitstatus_to_exitcode(status)
        else:
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                _child(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
