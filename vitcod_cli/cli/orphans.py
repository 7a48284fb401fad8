"""The processes of a run end with whoever has started them, even if that is killed and can't tell them."""

from __future__ import annotations

import os
import signal
import threading
import time

LAUNCHER = "VITCOD_LAUNCHER_PID"
"""Environment variable in which our own launcher tells its processes who they belong to."""

LOOK_EVERY = 0.5
"""Seconds between two looks at the parent."""

GRACE = 60.0
"""Seconds that a process gets to finish its step and save, once its parent has gone."""


def end_with_parent() -> None:
    """Have this process end soon after its parent, where that is torchrun's agent or our launcher.

    It gets a SIGTERM, upon which a training saves its state; a process that doesn't obey, because it waits for
    one that is gone, is killed. Not left to the kernel (``PR_SET_PDEATHSIG``), which means the parent's thread.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.environ.get(LAUNCHER, "")  # known even if it has gone already
    parent = int(launcher) if launcher.isdecimal() else os.getppid()
    threading.Thread(target=_watch, args=(parent,), name="vitcod-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
