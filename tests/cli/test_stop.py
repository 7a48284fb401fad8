"""Signals at every moment of a command: no traceback, the exit code of a shell, no temporary left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, MakeMap

from vitcod_cli.cli.stop import StopSignals
from vitcod_cli.errors import Interrupted

# `vitcod gen-mask`, which waits while it writes, says so, and ends in a way that a test chooses.
WRITING = """
import os, sys, time
import vitcod_cli.artifacts.safetensors_file as module
whole = module._save
def save(path, *words):
    path.write_bytes(b"half")
    os.write(2, b"writing\\n")
    time.sleep(60)
    return whole(path, *words)
module._save = save
from vitcod_cli.__main__ import main
sys.exit(main())
"""


AS_IN_A_TERMINAL = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
"""Under nohup tests would hand on that it is ignored."""


def start(code: str, cwd: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_TERMINAL + code, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stderr is not None
    while (read := process.stderr.readline()) != line:
        assert read, "the process ended early"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_while_writing_leaves_nothing(tmp_path: Path, make_map: MakeMap, name: str) -> None:
    np.save(tmp_path / "map.npy", make_map())
    words = "gen-mask --attn-map map.npy --sparsity 0.5 --output new/m.safetensors"
    process = start(WRITING, tmp_path, *words.split())
    wait_for(process, "writing\n")
    assert len(os.listdir(tmp_path / "new")) == 1
    number = signal.Signals[name]
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (out, err) == ("", "Interrupted.\n" if name == "SIGINT" else f"Stopped by {name}.\n")
    assert os.listdir(tmp_path) == ["map.npy"]


def test_what_is_to_be_ignored_is_ignored(tmp_path: Path, make_map: MakeMap) -> None:
    """``nohup``."""
    np.save(tmp_path / "map.npy", make_map())
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WRITING.replace("60", "0.5")
    process = start(code, tmp_path, *["gen-mask", "--attn-map", "map.npy", "--sparsity", "0.5", "--output", "m"])
    wait_for(process, "writing\n")
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == "m\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    "where",
    [
        "import vitcod_cli.cli.main",  # before main has begun
        "vitcod_cli.cli.app.COMMANDS",  # while it looks for the command
    ],
)
def test_ctrl_c_while_importing(tmp_path: Path, where: str) -> None:
    name = "vitcod_cli.cli.main" if where.startswith("import") else "vitcod_cli.cli.app"
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from vitcod_cli.__main__ import main
sys.exit(main())
"""
    process = start(code, tmp_path, "eval")
    assert process.communicate(timeout=60) == ("", "Interrupted.\n")
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_becomes_another_error_on_its_way(tmp_path: Path, number: int) -> None:
    """C++ modules turn what is raised while they are imported into an ImportError."""
    code = f"""
import os, sys
import vitcod_cli.steps.mask as step
def broken(*_):
    try:
        os.kill(os.getpid(), {int(number)})
    except BaseException as error:
        raise ImportError("initialization failed") from error
step.checked_path = broken
from vitcod_cli.__main__ import main
sys.exit(main())
"""
    process = start(code, tmp_path, "gen-mask", "--attn-map", "map.npy")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert len(err.splitlines()) == 1, err


def test_a_signal_in_a_destructor_comes_again(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
import vitcod_cli.steps.mask as step
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
def work(*_):
    last = Last()
    del last
    time.sleep(60)
step.checked_path = work
from vitcod_cli.__main__ import main
sys.exit(main())
"""
    process = start(code, tmp_path, "gen-mask", "--attn-map", "map.npy")
    assert process.communicate(timeout=30) == ("", "Stopped by SIGTERM.\n")
    assert process.returncode == 143


def test_ctrl_c_while_python_ends(tmp_path: Path) -> None:
    code = """
import atexit, os, sys, time
def last():
    os.write(2, b"ending\\n")
    time.sleep(60)
atexit.register(last)
from vitcod_cli.__main__ import main
sys.exit(main())
"""
    process = start(code, tmp_path, "--version")
    wait_for(process, "ending\n")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_processes_that_we_fork_end_as_they_always_did() -> None:
    stop = StopSignals()
    stop.install()
    try:
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM
        assert stop.received is None
    finally:
        stop.restore()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_signals_of_one_ctrl_c_are_one() -> None:
    """A terminal sends one to all, and torchrun's agent passes its own on: tidying goes on."""
    stop = StopSignals()
    stop.install()
    try:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
    finally:
        stop.restore()


def test_other_ranks_keep_the_default_of_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """They write nothing, and may wait in C++ for a process that is dead."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop = StopSignals()
    stop.install()
    try:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == stop._handle
    finally:
        stop.restore()


def test_handlers_of_others_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    mine, stop = signal.getsignal(signal.SIGUSR1), StopSignals()
    try:
        thread = threading.Thread(target=stop.install)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        stop.install()
        assert signal.getsignal(signal.SIGUSR1) is mine
        stop.restore()
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)
