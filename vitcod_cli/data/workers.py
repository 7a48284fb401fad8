"""Processes that read images: how many, how they behave, and what is said when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from vitcod_cli.errors import VitcodError
from vitcod_cli.runtime import usable_cores

_MOST = 8


def default_workers() -> int:
    """One for each core that is ours among the processes on this machine, at most 8."""
    neighbours = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1"
    share = usable_cores() // max(1, int(neighbours)) if neighbours.isdecimal() else usable_cores()
    return max(1, min(_MOST, share))


def start_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which finishes its step and then ends its workers.

    A terminal's Ctrl-C and a cluster's SIGTERM reach every process of a job; torch's own workers
    would print a traceback at the one and die of the other, in the middle of that last step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked here and in the threads to come; one thread takes the signals and looks at the sender.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process() -> None:
    parent = multiprocessing.parent_process()
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if parent is None or sender == parent.pid:
            os._exit(0)


DEATHS = (RuntimeError, ConnectionError, EOFError, FileNotFoundError)
"""What DataLoader raises when a worker is gone: its own message, or the end of the pipe or socket to it."""


_SIGNS_OF_DEATH = ("DataLoader worker (pid", "Pin memory thread exited")


def explain(error: Exception) -> VitcodError | None:
    """The sentence for a worker that died, or None for any other error."""
    text = str(error)
    if "in DataLoader worker process" in text:  # an error of the code that ran there, passed on
        return None
    if isinstance(error, RuntimeError) and not any(part in text for part in _SIGNS_OF_DEATH):
        return None
    if "bus error" in text.lower() or "shared memory" in text:
        way_on = "shared memory ran out: give the container more (--shm-size), or use --workers 0"
    else:
        way_on = "most likely memory ran out: use fewer --workers or a smaller --batch-size"
    return VitcodError(f"A process that reads images was killed; {way_on}.")
