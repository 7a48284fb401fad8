"""One process or many: who am I, and how do we add up.

Works under ``torchrun`` (which passes rank and world size in the environment), under SLURM's
``srun``, whose tasks are the processes of one run, and in a single process, where every
function below is free. How the processes meet is :mod:`~vitcod_cli.process_group`'s. torch is imported
inside the functions so that the command line can ask for the rank without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vitcod_cli.errors import VitcodError
from vitcod_cli.place import place

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def rank() -> int:
    """This process's global rank: from torchrun's or SLURM's environment, else 0."""
    return place().rank


def world_size() -> int:
    """The number of processes of the run, else 1."""
    return place().world_size


def local_rank() -> int:
    """The rank on this machine, which is also the number of its GPU."""
    return place().local_rank


def is_main() -> bool:
    """True on the one process that talks and writes."""
    return rank() == 0


def is_distributed() -> bool:
    """True inside a process group of more than one process."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum ``tensor`` over all processes, in place; returns it."""
    import torch.distributed as dist

    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
    """Copy ``tensor`` of process ``source`` to all, in place; returns it."""
    import torch.distributed as dist

    if is_distributed():
        dist.broadcast(tensor, source)
    return tensor


def gather_objects(value: T) -> list[T]:
    """``value`` of every process, by rank, on every process."""
    import torch.distributed as dist

    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def least(mine: int | None, otherwise: int) -> int:
    """The smallest amount that is left to any process; ``otherwise`` where no system says."""
    return min((amount for amount in gather_objects(mine) if amount is not None), default=otherwise)


def barrier() -> None:
    """Wait until every process is here."""
    import torch.distributed as dist

    if is_distributed():
        dist.barrier()


def from_main(value: T) -> T:
    """``value`` of rank 0, on every process."""
    import torch.distributed as dist

    if not is_distributed():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return cast(T, values[0])


class ErrorOfMain(VitcodError):  # noqa: N818
    """An error that rank 0 tells, raised on the others."""


def on_main(work: Callable[[], T]) -> T:
    """``work()`` of rank 0, on every process; all raise the VitcodError that it raises."""
    result: T | None = None
    problem: VitcodError | None = None
    if is_main():
        try:
            result = work()
        except VitcodError as error:
            problem = error
    if not is_distributed():
        if problem is not None:
            raise problem
        return cast(T, result)
    result, message = from_main((result, None if problem is None else str(problem)))
    if message is not None:
        raise problem or ErrorOfMain(message)
    return cast(T, result)
