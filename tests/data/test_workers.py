from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import CPU, MEDIUM, Numbered

from vitcod_cli.data import workers
from vitcod_cli.data.batches import BatchReader
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.reading import Reading
from vitcod_cli.errors import VitcodError


@pytest.mark.parametrize(
    ("cores", "neighbours", "expected"),
    [(2, "", 2), (2, "2", 1), (2, "8", 1), (64, "", 8), (64, "16", 4), (1, "", 1)],
)
def test_default_follows_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, neighbours: str, expected: int
) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", neighbours)
    assert workers.default_workers() == expected


def test_images_in_memory_need_no_workers() -> None:
    transform = MEDIUM.eval_transform()
    reading = Reading(preprocess=MEDIUM, transform=transform, batch_size=2, workers=None, device=CPU)
    reader = BatchReader(Numbered(3), reading)
    assert reader._loader.num_workers == 0


def test_a_killed_worker_is_told_in_a_sentence() -> None:
    loader = iter(eval_loader(Numbered(4000), MEDIUM, batch_size=2, workers=1, device=CPU))
    next(loader)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(VitcodError, match=r"was killed; .*--workers"):
        for _ in loader:
            pass


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "), "memory ran out"),
        (RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly"), "memory ran out"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error. It is ..."), "--shm-size"),
        (ConnectionResetError(104, "Connection reset by peer"), "memory ran out"),
        (EOFError(), "memory ran out"),
        (ConnectionResetError("Caught ConnectionResetError in pin memory thread for device 0."), "memory ran out"),
    ],
)
def test_deaths_are_explained(error: Exception, says: str) -> None:
    assert says in str(workers.explain(error))


def test_other_errors_are_not() -> None:
    assert (
        workers.explain(FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.\n...")) is None
    )
    assert workers.explain(RuntimeError("CUDA error: out of memory")) is None
    assert workers.explain(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n...")) is None


SCRIPT = """
import os, signal, subprocess, sys
sys.path.insert(0, sys.argv[1])
from pictures import CPU, MEDIUM, Numbered
from vitcod_cli.data.loaders import eval_loader

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: print(signal.Signals(number).name, flush=True))
loader = eval_loader(Numbered(60), MEDIUM, batch_size=2, workers=2, device=CPU)
count = 0
for step, (images, targets) in enumerate(loader):
    if step == 3:
        words = ["sh", "-c", f"kill -INT -{os.getpgid(0)}; kill -TERM -{os.getpgid(0)}"]
        subprocess.run(words, start_new_session=True)
    count += len(targets)
print(count, flush=True)
for batch in loader:
    raise KeyError("in the middle of a pass")
"""


def test_signals_to_the_whole_job_leave_the_step_to_the_main_process() -> None:
    """Ctrl-C and a cluster's SIGTERM reach the workers too: they go on, and end with the main process."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(here)],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(here.parents[1])},
    )
    *signals, count = done.stdout.split()
    assert (set(signals), count) == ({"SIGINT", "SIGTERM"}, "60")  # they come together, in any order
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "in the middle of a pass" in done.stderr
