"""``--nproc-per-node N``: start N processes of this very command, as ``torchrun --standalone`` does."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import typer

from vitcod_cli.cli.orphans import LAUNCHER
from vitcod_cli.distributed import world_size
from vitcod_cli.errors import VitcodError
from vitcod_cli.runtime import usable_cores

_ALWAYS = 8
"""Processes that any machine may be asked for, whatever its cores."""


def is_launched() -> bool:
    """Whether this is already one of the processes of a run that torchrun, srun or we started."""
    return "TORCHELASTIC_RUN_ID" in os.environ or world_size() > 1


def check_agreement(processes: int) -> None:
    """Raises a VitcodError if ``--nproc-per-node`` says another number than torchrun, or says any under srun."""
    started = os.environ.get("LOCAL_WORLD_SIZE")
    if processes != int(started or 1):
        has = f"torchrun has started {started} on this machine" if started else "all processes are started already"
        raise VitcodError(f"--nproc-per-node {processes} does nothing where {has}: leave it out.")


def check_count(processes: int, device: str) -> None:
    """Raises a VitcodError if this machine has too few GPUs for ``processes``, or on CPUs far too few cores."""
    if device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
        if gpus and processes > gpus:
            raise VitcodError(
                f"--nproc-per-node {processes} is more than this machine has GPUs ({gpus}); start one process for "
                "each, or take --device cpu."
            )
        if gpus:
            return
    cores = usable_cores()
    most = max(_ALWAYS, cores)
    if processes > most:
        raise VitcodError(
            f"--nproc-per-node {processes} is too many for this machine (cores: {cores}); start at most {most}."
        )


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run ``vitcod ARGUMENTS`` in ``processes`` processes and wait for them.

    Raises:
        typer.Exit: with the code of the process that failed first, or 128 + n after signal n.
        VitcodError: if the processes can't be started.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _prepare_environment(processes)
    os.environ[LAUNCHER] = str(os.getpid())
    # The processes tell their own errors; the agent's would only repeat them with its traceback.
    logging.disable(logging.ERROR)
    command = ["--standalone", f"--nproc-per-node={processes}", "-m", "vitcod_cli", *arguments]
    # torchrun would die of a SIGUSR1; it passes on a SIGTERM, which to the processes is the same.
    before = signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        torchrun.run(torchrun.parse_args(command))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise typer.Exit(code if code > 0 else 128 - code) from None
    except SignalException as error:
        raise typer.Exit(128 + int(error.sigval)) from None
    except OSError as error:
        raise VitcodError(
            f"--nproc-per-node {processes}: the processes can't be started ({error.strerror or error}); free some "
            "memory or disk, or start fewer."
        ) from error
    finally:
        signal.signal(signal.SIGUSR1, before)
        logging.disable(logging.NOTSET)
        del os.environ[LAUNCHER]


def _prepare_environment(processes: int) -> None:
    # Else torchrun sets one thread, and says so.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():  # not installed: the processes must find it as we did
        paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
