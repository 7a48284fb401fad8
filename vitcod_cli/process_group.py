"""How the processes of a run meet and part, and which of them tells of an error.

torch is imported inside the functions, as in :mod:`~vitcod_cli.distributed`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vitcod_cli.distributed import ErrorOfMain, is_main, local_rank, rank, world_size
from vitcod_cli.errors import VitcodError
from vitcod_cli.place import first_host

if TYPE_CHECKING:
    import torch

_TIMEOUT = timedelta(minutes=30)
_attempt = 1


def attempt() -> int:
    """How often torchrun has started the processes of this run, this time included; 1 before they have met."""
    return _attempt


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

    store, me, world = next(rendezvous("env://", timeout=_TIMEOUT))
    if me == 0:
        _attempt = store.add("vitcod/attempts", 1)
        for other in range(1, world):
            _hand_out_attempt(store, other)
    else:
        name = os.urandom(16).hex()
        store.set(f"vitcod/here/{me}", name)
        _attempt = int(store.get(f"vitcod/welcome/{name}"))
        store.set(f"vitcod/met/{_attempt}/{me}", "")
    own = PrefixStore(f"vitcod/attempt/{_attempt}", store)
    return {"store": own, "rank": me, "world_size": world}


def _hand_out_attempt(store: Any, other: int) -> None:
    """Tell the living process of the rank ``other`` the number of this attempt."""
    end = time.monotonic() + _TIMEOUT.total_seconds()
    while not store.check([f"vitcod/met/{_attempt}/{other}"]):
        name = store.get(f"vitcod/here/{other}").decode()  # perhaps still that of a dead one
        store.set(f"vitcod/welcome/{name}", str(_attempt))
        if time.monotonic() > end:
            raise RuntimeError(f"process {other} does not answer")
        time.sleep(0.02)


@contextmanager
def _one_report() -> Iterator[None]:
    """Settle who tells of an error while the processes can still agree; name the loss of a process."""
    global _reports  # noqa: PLW0603
    try:
        yield
    except VitcodError as error:
        _reports = not isinstance(error, ErrorOfMain) and _is_first()
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
    store = agent_store()
    try:
        if store is not None:
            return bool(store.add(f"vitcod/errors/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1)
    except RuntimeError:
        pass
    return is_main()


def agent_store() -> Any:
    """The store that torchrun keeps for its processes as long as it lives itself, None where there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
    except (RuntimeError, KeyError, ValueError):
        return None
