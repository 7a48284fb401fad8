"""Processes that read images: how many, how they behave, and what is said when one dies."""

from __future__ import annotations

import errno
import multiprocessing.queues
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
    """Leave Ctrl-C, SIGTERM and SIGUSR1 to the main process, which finishes its step and then ends its workers.

    A terminal's Ctrl-C and a cluster's SIGTERM reach every process of a job; torch's own workers
    would print a traceback at the one and die of the other, in the middle of that last step.
    """
    # torch's queue only prints what its sending thread fails of, and the main process waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_die)  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked here and in the threads to come; one thread takes the signals and looks at the sender.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _die(error: Exception, item: object) -> None:
    os._exit(1)


def _obey_main_process() -> None:
    parent = multiprocessing.parent_process()
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if parent is None or sender == parent.pid:
            os._exit(0)


DEATHS = (RuntimeError, OSError, EOFError)
"""What DataLoader raises when a worker is gone or can't be started: its own message, or the system's."""


_SIGNS_OF_DEATH = ("DataLoader worker (pid", "Pin memory thread exited")
_SIGNS_OF_FULL_MEMORY = (
    "bus error",
    "shared memory",
    "unable to write to file </torch",
    "no space left on device",
)
_SIGNS_OF_FEW_FILES = ("too many open files", "ancdata", "unable to open shared memory")


def explain(error: Exception) -> VitcodError | None:
    """The sentence for a worker that died or could not be started, or for its images that were lost; else None."""
    text = str(error).lower()
    if any(sign in text for sign in _SIGNS_OF_FEW_FILES):
        way_on = "too many files were open: raise the limit (ulimit -n), or use fewer --workers"
    elif any(sign in text for sign in _SIGNS_OF_FULL_MEMORY):
        way_on = "shared memory ran out: give the container more (--shm-size), or use --workers 0"
    elif "in dataloader worker process" in text:  # an error of the code that ran there, passed on
        return None
    elif isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EPERM):
        return VitcodError(
            f"The processes that read images can't be started ({error.strerror}); use fewer --workers, "
            "or --workers 0."
        )
    elif isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) or any(
        sign.lower() in text for sign in _SIGNS_OF_DEATH
    ):
        way_on = "most likely memory ran out: use fewer --workers or a smaller --batch-size"
    else:
        return None
    return VitcodError(f"A process that reads images was killed; {way_on}.")
