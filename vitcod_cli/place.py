"""Where a process stands among those of its run, as the environment of torchrun or SLURM says."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vitcod_cli.errors import VitcodError, shown

_SPECIAL_STEPS = 0xFFFFFFF0
"""From this id on, steps are SLURM's own: the batch script, the interactive shell."""

_START_THEM = "start processes with --nproc-per-node, torchrun or srun, or unset the variables"


class Place(NamedTuple):
    """Where a process stands among those of its run."""

    rank: int
    world_size: int
    local_rank: int


def place() -> Place:
    """From the environment; where that makes no sense, alone: whoever tells of it must be allowed to talk."""
    try:
        return _read_place()
    except VitcodError:
        return Place(0, 1, 0)


def check_environment() -> None:
    """Raises a VitcodError if the variables of torchrun or SLURM contradict each other or are no numbers."""
    _read_place()
    _from_environment("LOCAL_WORLD_SIZE", (), 1)


def _read_place() -> Place:
    rank = _from_environment("RANK", ("SLURM_PROCID",), 0)
    world = _from_environment("WORLD_SIZE", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), 1)
    local = _from_environment("LOCAL_RANK", ("SLURM_LOCALID",), 0)
    if world > 1 and not os.environ.get("RANK") and not under_srun():
        raise VitcodError(f"WORLD_SIZE={world} without a RANK: {_START_THEM}.")
    if not max(rank, local) < world:
        name = "rank" if rank >= world else "local rank"
        raise VitcodError(
            f"This process has the {name} {max(rank, local)} among {world} (RANK, LOCAL_RANK, WORLD_SIZE, or "
            f"SLURM's variables): {_START_THEM}."
        )
    return Place(rank, world, local)


def _from_environment(torchrun: str, slurm: Sequence[str], default: int) -> int:
    """The number in the variable ``torchrun``, or in the first of ``slurm`` that is set in a task of srun."""
    names = [torchrun, *(slurm if under_srun() else ())]
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return default
    text = os.environ[name]
    if re.fullmatch(r"\d{1,9}", text, re.ASCII) is None:
        raise VitcodError(
            f"The environment variable {name}={shown(text)} is not a whole number; unset or mend it."
        )
    return int(text)


def under_srun() -> bool:
    """Whether this process is one of the tasks of an ``srun``, which together are one run.

    A batch script and the shell of an allocation have the variables of all its tasks, and are one process.
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    if os.environ.get("RANK") or not step.isdecimal() or int(step[:20]) >= _SPECIAL_STEPS:
        return False
    # `srun --pty bash`: what is typed there runs once. An srun inside inherits the variable, not the terminal.
    return not ("SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty())


def first_host(nodes: str) -> str:
    """The first host of a node list of SLURM's: ``node[01-04,07],login`` -> ``node01``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")
