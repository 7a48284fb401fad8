"""``--nproc-per-node N``: start N processes of this very command, as ``torchrun --standalone`` does."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import typer

from vitcod_cli.distributed import world_size
from vitcod_cli.runtime import usable_cores


def is_launched() -> bool:
    """Whether this is already one of the processes of a run that torchrun, srun or we started."""
    return "TORCHELASTIC_RUN_ID" in os.environ or world_size() > 1


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run ``vitcod ARGUMENTS`` in ``processes`` processes and wait for them.

    Raises:
        typer.Exit: with the code of the process that failed first, or 128 + n after signal n.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _prepare_environment(processes)
    # The processes tell their own errors; the agent's would only repeat them with its traceback.
    logging.disable(logging.ERROR)
    command = ["--standalone", f"--nproc-per-node={processes}", "-m", "vitcod_cli", *arguments]
    try:
        torchrun.run(torchrun.parse_args(command))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise typer.Exit(code if code > 0 else 128 - code) from None
    except SignalException as error:
        raise typer.Exit(128 + int(error.sigval)) from None


def _prepare_environment(processes: int) -> None:
    # Else torchrun sets one thread, and says so.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():  # not installed: the processes must find it as we did
        paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
