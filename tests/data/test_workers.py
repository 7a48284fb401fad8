from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures import CPU, MEDIUM, Numbered

from vitcod_cli.data import workers
from vitcod_cli.data.batches import BatchReader
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.reading import Reading
from vitcod_cli.data.samples import Batch
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
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "can't be started .*--workers"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "can't be started .*--workers"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent):\n"
                "RuntimeError: unable to write to file </torch_12_34_0>: No space left on device (28)"
            ),
            "--shm-size",
        ),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: Success (0)"), "--shm-size"),
        (ConnectionResetError("Caught ConnectionResetError in pin memory thread for device 0."), "memory ran out"),
    ],
)
def test_deaths_are_explained(error: Exception, says: str) -> None:
    assert re.search(says, str(workers.explain(error)))


def test_workers_that_cannot_be_started_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(process: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.Process, "start", start)
    with pytest.raises(
        VitcodError, match=r"can't be started \(Resource temporarily unavailable\); use fewer --work"
    ):
        list(eval_loader(Numbered(4), MEDIUM, batch_size=2, workers=2, device=CPU))


def test_images_that_find_no_shared_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", share)
    with pytest.raises(VitcodError, match="shared memory ran out: give the container more"):
        list(eval_loader(Numbered(4), MEDIUM, batch_size=2, workers=1, device=CPU))


def test_a_batch_that_cannot_be_sent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent by a thread, whose errors torch's workers only print."""

    def reduce(batch: object, protocol: int) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Batch, "__reduce_ex__", reduce)
    with pytest.raises(VitcodError, match="A process that reads images was killed"):
        list(eval_loader(Numbered(4), MEDIUM, batch_size=2, workers=1, device=CPU))


def test_other_errors_are_not() -> None:
    assert workers.explain(PermissionError(errno.EACCES, "Permission denied")) is None
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

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.write(1, (signal.Signals(number).name + os.linesep).encode()))
loader = eval_loader(Numbered(60), MEDIUM, batch_size=2, workers=2, device=CPU)
count = 0
for step, (images, targets) in enumerate(loader):
    if step == 3:
        kills = "; ".join(f"kill -{name} -{os.getpgid(0)}" for name in ("INT", "TERM", "USR1"))
        subprocess.run(["sh", "-c", kills], start_new_session=True)
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
    assert (set(signals), count) == ({"SIGINT", "SIGTERM", "SIGUSR1"}, "60")  # they come together, in any order
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "in the middle of a pass" in done.stderr
