"""One process or many: who am I, and how do we add up.

Works under ``torchrun`` (which passes rank and world size in the environment), under SLURM's
``srun``, whose tasks are the processes of one run, and in a single process, where every
function below is free. torch is imported inside the functions so that the command line can ask
for the rank without it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vitcod_cli.errors import VitcodError
from vitcod_cli.place import first_host, place

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)
_attempt = 1
"""How often torchrun has started the processes of this run, this time included."""


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


def _set_rendezvous_address() -> None:
    """Complete the environment that ``init_process_group`` reads, from SLURM's where the user has not.

    Raises:
        VitcodError: if nobody says where rank 0 is.
    """
    if "MASTER_ADDR" not in os.environ:
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        host = first_host(next((os.environ[name] for name in names if name in os.environ), ""))
        if not host:
            raise VitcodError(
                f"The {world_size()} processes don't know where the first of them is: set MASTER_ADDR to its "
                "machine, or start them with --nproc-per-node or torchrun."
            )
        os.environ["MASTER_ADDR"] = host
        # Another port for each job and step, the same for all of its tasks.
        numbers = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        step = sum(int(number) for number in numbers if number.isdecimal())
        os.environ.setdefault("MASTER_PORT", str(20000 + step % 20000))
    os.environ.setdefault("MASTER_PORT", "29500")
    # Together: with one of them alone, under_srun() would be wrong.
    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(local_rank()))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the run's process group (NCCL on CUDA, gloo on the CPU) for the time of the block.

    Raises:
        VitcodError: if the other processes can't be reached.
    """
    import torch.distributed as dist

    if world_size() == 1 or dist.is_initialized():
        yield
        return
    _set_rendezvous_address()
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
            **_rendezvous(),
        )
    except (RuntimeError, ValueError) as error:
        raise VitcodError(
            f"The {world_size()} processes could not find each other ({error}); check MASTER_ADDR and "
            "MASTER_PORT, or start them with --nproc-per-node or torchrun."
        ) from error
    try:
        with _one_report():
            yield
    finally:
        dist.destroy_process_group()


def _rendezvous() -> dict[str, Any]:
    """Where the processes find each other, as arguments of ``init_process_group``.

    Under torchrun that is a store of its own, which it keeps when it restarts the processes
    (pytorch/pytorch#135712): a process could read the address of a dead one and wait for it in vain.
    So rank 0 counts the attempts, and hands its number to those processes that are alive: each
    asks under a name that was never used before.
    """
    global _attempt  # noqa: PLW0603
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://", timeout=_TIMEOUT))
    if rank == 0:
        _attempt = store.add("vitcod/attempts", 1)
        for other in range(1, world):
            _hand_out_attempt(store, other, _attempt)
    else:
        name = os.urandom(16).hex()
        store.set(f"vitcod/here/{rank}", name)
        _attempt = int(store.get(f"vitcod/welcome/{name}"))
        store.set(f"vitcod/met/{_attempt}/{rank}", "")
    own = PrefixStore(f"vitcod/attempt/{_attempt}", store)
    return {"store": own, "rank": rank, "world_size": world}


def _hand_out_attempt(store: Any, rank: int, attempt: int) -> None:
    """Tell the living process ``rank`` the number of this attempt."""
    end = time.monotonic() + _TIMEOUT.total_seconds()
    while not store.check([f"vitcod/met/{attempt}/{rank}"]):
        name = store.get(f"vitcod/here/{rank}").decode()  # perhaps still that of a dead one
        store.set(f"vitcod/welcome/{name}", str(attempt))
        if time.monotonic() > end:
            raise RuntimeError(f"process {rank} does not answer")
        time.sleep(0.02)


@contextmanager
def _one_report() -> Iterator[None]:
    """Settle who tells of an error while the processes can still agree; name the loss of a process."""
    global _reports  # noqa: PLW0603
    try:
        yield
    except VitcodError as error:
        _reports = not isinstance(error, _ErrorOfMain) and _is_first()
        raise
    except RuntimeError as error:
        if not _means_lost_process(error):
            raise
        _reports = _is_first()
        raise VitcodError(
            "Another process of this run ended or was killed (out of memory?), so all of them stop; start the "
            "command again, a training with --resume."
        ) from error


def _means_lost_process(error: RuntimeError) -> bool:
    import torch.distributed as dist

    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


_reports: bool | None = None
"""Whether this process tells of the error that ended its process group; None where none did."""


def _is_first() -> bool:
    import torch.distributed as dist

    try:
        # torchrun keeps the store alive when processes go.
        return bool(dist.distributed_c10d._get_default_store().add("vitcod/errors", 1) == 1)
    except RuntimeError:
        return True


def restarted() -> bool:
    """Whether torchrun (``--max-restarts``) or SLURM (requeue) has started this very run again.

    Such a run goes on from its saved state, though its command line doesn't say ``--resume``. Which state
    is its own, :func:`is_restart_of` tells.
    """
    return bool(_restarted_by())


def is_restart_of(saved: object) -> bool:
    """Whether the launch that ``saved`` names (:func:`launches`, from a file) has been restarted as this one.

    Args:
        saved: anything that JSON may hold.
    """
    own = launches()
    return isinstance(saved, dict) and any(
        name in own and saved.get(name) == own[name] for name in _restarted_by()
    )


def _restarted_by() -> list[str]:
    # torchrun counts for each machine on its own, but is right before the processes have met.
    counts = {"torchrun": "TORCHELASTIC_RESTART_COUNT", "slurm": "SLURM_RESTART_COUNT"}
    launchers = [
        name for name, variable in counts.items() if re.fullmatch(r"0*[1-9]\d*", os.environ.get(variable, ""))
    ]
    return ["torchrun", *launchers] if _attempt > 1 else launchers


def launches() -> dict[str, str]:
    """What tells this launch from all others, by the launcher that may restart it: ``torchrun``, ``slurm``.

    A restart has the same, and so can find out whether a saved state is of the run that it restarts.
    """
    names = {}
    if "SLURM_JOB_ID" in os.environ:
        parts = ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID")
        names["slurm"] = "/".join(os.environ.get(name, "") for name in parts)
    torchrun = _torchrun_launch()
    if torchrun is not None:
        names["torchrun"] = torchrun
    return names


def _torchrun_launch() -> str | None:
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    store = _agent_store()
    try:
        if store is not None:  # lives as long as the launch; the id may be the same for all ("none")
            return str(store.compare_set("vitcod/launch", "", os.urandom(16).hex()).decode())
    except RuntimeError:
        pass
    return None if run_id in ("", "none") else run_id


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


def first_to_report() -> bool:
    """True for the one process of the run that should print an error that it has met.

    An error that all processes meet is said once; one that a single process meets is said too,
    whichever rank it is.
    """
    if _reports is not None:
        return _reports
    if world_size() > 1:
        return _is_first_before_meeting()
    return is_main()


def _is_first_before_meeting() -> bool:
    """As :func:`_is_first`, for an error before the process group: torchrun's store is there already."""
    store = _agent_store()
    try:
        if store is not None:
            return bool(store.add(f"vitcod/errors/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1)
    except RuntimeError:
        pass
    return is_main()


def _agent_store() -> Any:
    """The store that torchrun keeps for its processes as long as it lives itself, None where there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
    except (RuntimeError, KeyError, ValueError):
        return None


def from_main(value: T) -> T:
    """``value`` of rank 0, on every process."""
    import torch.distributed as dist

    if not is_distributed():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return cast(T, values[0])


class _ErrorOfMain(VitcodError):  # noqa: N818
    """An error that rank 0 tells."""


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
        raise problem or _ErrorOfMain(message)
    return cast(T, result)
