"""Processes whose launcher is killed end too: none trains on and writes where the next run does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import ROOT
from safetensors.torch import load_file

CHILD = """
import os, signal, sys, time
from vitcod_cli.cli import orphans
orphans.LOOK_EVERY, orphans.GRACE = 0.05, 0.2
if sys.argv[1] == "deaf":  # as one that waits inside a collective
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
orphans.end_with_parent()
time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def start(how: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
    """A parent, and the pid of its child, which may be about to watch it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, how],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.1)
    return parent, child


def runs(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    return False


def ends(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while runs(pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("how", ["plain", "deaf"])
def test_a_process_ends_with_its_launcher(how: str) -> None:
    parent, child = start(how, TORCHELASTIC_RUN_ID="x")
    parent.kill()
    parent.wait()
    assert ends(child, 20)


def test_a_launcher_that_was_gone_before_its_process_looked() -> None:
    parent, child = start("plain", TORCHELASTIC_RUN_ID="x", VITCOD_LAUNCHER_PID=str(os.getpid()))
    assert ends(child, 20), "its parent is not the launcher"
    parent.wait(20)


def test_a_process_of_nobody_is_left_alone() -> None:
    """nohup vitcod ... &, and the shell is closed."""
    parent, child = start("plain")
    parent.kill()
    parent.wait()
    assert not ends(child, 0.6)


TINY = "--model deit_tiny_patch16_224 --img-size 32 --model-kwargs patch_size=8 embed_dim=24 depth=2 num_heads=3"
WORDS = f"finetune-dense {TINY} --dataset digits --max-steps 3000 --batch-size 16 --workers 1 --output-dir run"
OWN = [sys.executable, "-m", "vitcod_cli", *WORDS.split(), "--nproc-per-node", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2"]


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["own", "torchrun"])
def test_a_launcher_that_is_killed_takes_its_run_along(how: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = OWN if how == "own" else [*TORCHRUN, "-m", "vitcod_cli", *WORDS.split()]
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)
    while "Epoch 1:" not in (tmp_path / "log").read_text():
        assert launcher.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    workers = children(launcher.pid)
    readers = [reader for worker in workers for reader in children(worker)]
    assert len(workers) == 2
    assert len(readers) >= 2
    launcher.kill()
    launcher.wait()
    assert [pid for pid in workers + readers if not ends(pid, 60)] == []
    assert "the state is saved" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert load_file(tmp_path / "run/state.safetensors")
    going_on = [*OWN, "--resume", "--max-steps", "1"]
    again = subprocess.run(going_on, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
