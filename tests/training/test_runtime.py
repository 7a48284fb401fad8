"""Device, precision, seeds; and the loggers beside the run folder."""

from __future__ import annotations

import io
import os
import platform
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import train

from vitcod_cli import distributed, machine
from vitcod_cli.cli import launch
from vitcod_cli.cli.console import PlainReporter
from vitcod_cli.errors import VitcodError
from vitcod_cli.place import first_host
from vitcod_cli.restarts import restarted
from vitcod_cli.runtime import RuntimeSettings, _pick_device, seed_everything, start, usable_cores


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VitcodError, match="--device cpu"), start(RuntimeSettings(device="cuda")):
        pass


NO_DEVICES = ["gpu", "meta", "mps", "xpu", "hpu", "vulkan", "cuda:-1", "cuda:", "cuda:x", "cpu:1", "cpu ", "CUDA"]
NO_DEVICES += ["", " ", "cpu\n", "cuda:\N{DEVANAGARI DIGIT ONE}", "cuda:99999999999999999999"]


@pytest.mark.parametrize("device", NO_DEVICES)
def test_a_device_that_is_not_supported(device: str) -> None:
    with pytest.raises(VitcodError, match=r"^--device .*"):
        RuntimeSettings(device=device)


def test_one_gpu_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VitcodError, match="--device cuda:1 is one GPU for 2 processes"):
        RuntimeSettings(device="cuda:1", nproc_per_node=2)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VitcodError, match="for 4 processes"), start(RuntimeSettings(device="cuda:1")):
        pass


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VitcodError, match="at most 2 processes"), start(RuntimeSettings(device="cuda")):
        pass


def test_auto_on_the_cpu_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with start(RuntimeSettings()) as runtime:
        assert (runtime.device.type, runtime.dtype) == ("cpu", torch.float32)
        with runtime.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("fast", ["amx_bf16", "avx512_bf16", "avx512f"])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_training_is_in_bfloat16_where_the_cpu_is_fast_at_it(
    precision: Any, fast: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless told otherwise; what is compared with published figures stays in float32, and one line says so."""
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset(["avx2", fast]))
    automatic = precision == "auto"
    given = torch.float32 if automatic else getattr(torch, precision)
    differs = automatic and fast.endswith("bf16")
    with start(RuntimeSettings(device="cpu", precision=precision)) as runtime:
        assert runtime.dtype == given
        assert runtime.for_training.dtype == (torch.bfloat16 if differs else given)
        assert runtime.for_training.settings is runtime.settings
        with runtime.for_training.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == runtime.for_training.dtype
        runtime.announce_precision(PlainReporter())
    assert capsys.readouterr().err.count("--precision") == differs


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_seeds_depend_on_every_number() -> None:
    seen = set()
    for numbers in [(0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 3, 3), (1, 0, 2, 3), (0, 1, 2), (2**70, 0)]:
        seed_everything(*numbers)
        first = draws()
        seed_everything(*numbers)
        assert draws() == first
        seen.add(first)
    assert len(seen) == 6


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith(("MASTER_", "SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def ranks() -> tuple[int, int, int]:
    return distributed.rank(), distributed.world_size(), distributed.local_rank()


@pytest.mark.usefixtures("no_launcher")
def test_what_counts_as_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert ranks() == (0, 1, 0)  # a bare sbatch script
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert ranks() == (5, 8, 1)  # srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "6")
    assert ranks() == (5, 6, 1)  # the step's own tasks, not the allocation's
    monkeypatch.setenv("SLURM_PTY_PORT", "40000")
    assert ranks() == (5, 6, 1)  # srun in an interactive shell: without the terminal
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert ranks() == (0, 1, 0)  # that shell itself
    monkeypatch.delenv("SLURM_PTY_PORT")
    monkeypatch.setenv("SLURM_STEP_ID", "4294967290")
    assert ranks() == (0, 1, 0)  # the step that SLURM makes for salloc's shell
    for name, value in {"RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.rank() == 2  # torchrun inside a job


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x"}, "RANK='x' is not a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "0", "WORLD_SIZE": "1e3"}, "WORLD_SIZE='1e3'"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "RANK='999"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "rank 3 among 2"),
        ({"RANK": "3"}, "rank 3 among 1"),  # would neither speak nor write
        ({"WORLD_SIZE": "0"}, "rank 0 among 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without a RANK"),
        ({"LOCAL_RANK": "99"}, "local rank 99 among 1"),
        ({"LOCAL_WORLD_SIZE": "many"}, "LOCAL_WORLD_SIZE='many'"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "x", "SLURM_NTASKS": "2"}, "SLURM_PROCID='x'"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "2"}, "rank 5 among 2"),
    ],
)
def test_an_environment_that_makes_no_sense(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said in one sentence, and said at all: a process that takes itself for another would be silent."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VitcodError, match=message), start(RuntimeSettings(device="cpu")):
        pass
    assert distributed.is_main()


@pytest.mark.usefixtures("no_launcher")
@pytest.mark.parametrize("step", ["x", "", "-1", "9" * 6000, "4294967295"])
def test_slurm_variables_outside_of_srun_mean_nothing(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_STEP_ID": step, "SLURM_PROCID": "nonsense", "RANK": ""}.items():
        monkeypatch.setenv(name, value)
    assert ranks() == (0, 1, 0)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node7", "node7"),
        ("node[01-04,07]", "node01"),
        ("a1,b2", "a1"),
        ("gpu-[003,5-7]x,other[1-2]", "gpu-003x"),
        ("rack[2-3]n[10,12]", "rack2n10"),
        ("login.cluster.example", "login.cluster.example"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.usefixtures("no_launcher")
def test_srun_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_STEP_ID": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VitcodError, match="set MASTER_ADDR"), start(RuntimeSettings(device="cpu")):
        pass


@pytest.mark.usefixtures("no_launcher")
def test_gpus_under_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --gpus-per-task a task sees its own GPUs alone, and counts them from 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {
        "SLURM_STEP_ID": "1",
        "SLURM_LOCALID": "3",
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VitcodError, match="wants GPU 3 but there are 1"):
        _pick_device("cuda")
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert _pick_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(VitcodError, match="sees GPUs cuda:0 to cuda:0"):
        _pick_device("cuda:2")


def switches() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "mem_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was_after_a_run(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU --deterministic switches off attention kernels; the next run in this process has them again."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr("vitcod_cli.runtime._pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    before = switches()
    with suppress(ZeroDivisionError), start(RuntimeSettings(deterministic=True, threads=1)):
        during = switches()
        if fails:
            raise ZeroDivisionError
    assert during["deterministic"]
    assert not during["mem_efficient"]
    assert not during["cudnn"]
    assert during["workspace"]
    assert switches() == before


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 8)])
def test_threads_are_those_of_the_quota(quota: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of two cores on a machine of eight; 4 processes share what there is."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(quota))
    assert usable_cores() == expected
    launch._prepare_environment(4)
    assert os.environ["OMP_NUM_THREADS"] == str(max(1, expected // 4))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("TORCHELASTIC_RESTART_COUNT", "0", False), ("TORCHELASTIC_RESTART_COUNT", "1", True),
     ("SLURM_RESTART_COUNT", "2", True), ("SLURM_RESTART_COUNT", "", False)],
)  # fmt: skip
def test_restarts(name: str, value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert restarted() == expected


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(VitcodError, match=rf"pip install 'vitcod\[{name}\]'"):
        train(tmp_path / "run", log_to=name)


def test_figures_go_to_the_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []

    class Run:
        def __init__(self, **arguments: Any) -> None:
            self.arguments, self.logged, self.finished = arguments, [], False
            runs.append(self)

        def log(self, figures: dict[str, Any], step: int) -> None:
            self.logged.append((step, figures["acc1"]))

        def finish(self) -> None:
            self.finished = True

    wandb = SimpleNamespace(init=Run, util=SimpleNamespace(generate_id=lambda: f"id{len(runs)}"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tmp_path / "run", log_to="wandb", epochs=2)
    assert [step for step, _ in runs[0].logged] == [1, 2]
    assert runs[0].finished
    assert runs[0].arguments["config"]["--epochs"] == 2
    train(tmp_path / "run", log_to="wandb", epochs=3, resume=True)
    assert runs[1].arguments["id"] == runs[0].arguments["id"]
    assert [step for step, _ in runs[1].logged] == [3]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_kept_for_the_next_batch(tmp_path: Path) -> None:
    """Else every large tensor is made of fresh pages, which the system has to clear."""
    script = tmp_path / "faults.py"
    script.write_text(
        "import resource, torch\n"
        "from vitcod_cli.runtime import RuntimeSettings, start\n"
        "with start(RuntimeSettings(device='cpu')):\n"
        "    for step in range(16):\n"
        "        torch.empty(2**24).fill_(1), torch.empty(2**22).fill_(1)\n"
        "        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "        print(faults)\n"
    )
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    faults = [int(line) for line in out.split()]
    assert faults[-1] - faults[9] < 1000  # by then it has grown enough; 6 x 80 MiB are 120,000 pages
