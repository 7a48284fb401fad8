"""Whether torchrun or SLURM has started this very run again, and how a saved state knows its launch."""

from __future__ import annotations

import os
import re

from vitcod_cli.process_group import agent_store, attempt


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
    return ["torchrun", *launchers] if attempt() > 1 else launchers


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
    store = agent_store()
    try:
        if store is not None:  # lives as long as the launch; the id may be the same for all ("none")
            return str(store.compare_set("vitcod/launch", "", os.urandom(16).hex()).decode())
    except RuntimeError:
        pass
    return None if run_id in ("", "none") else run_id
