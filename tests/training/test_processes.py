"""Trainings in processes of their own: several at once, signals, full disks, lost processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import assert_same, figures, metrics
from tiny import NO_CHANCE
from zygote import ROOT, Process, Zygote

from vitcod_cli.artifacts.run_lock import LOCK
from vitcod_cli.training.run_state import StateFile

LONG = {"epochs": 500}
"""Longer than any test; a run that is to be stopped."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_group(zygote: Zygote, folder: Path, size: int = 2, slurm: bool = False, **options: Any) -> list[Process]:
    """``size`` processes of one run, as torchrun or srun would start them."""
    port = str(free_port())
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS") if slurm else ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    processes = []
    for rank in range(size):
        environment = dict(zip(names, map(str, (rank, rank, size)), strict=True))
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_STEP_ID": "0"}
        processes.append(zygote.start(folder, environment=environment, **options))
    return processes


def wait_all(processes: Sequence[Process]) -> list[int]:
    return [process.wait() for process in processes]


def said(processes: Sequence[Process]) -> str:
    return "".join(process.log.read_text() for process in processes)


def run_group(zygote: Zygote, folder: Path, **options: Any) -> str:
    """What a group of processes that ends well has said."""
    processes = start_group(zygote, folder, **options)
    codes = wait_all(processes)
    assert codes == [0] * len(codes), said(processes)
    return said(processes)


# -- one process ------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_saves_and_ends_the_run(zygote: Zygote, tmp_path: Path, number: int, code: int) -> None:
    process = zygote.start(tmp_path / "run", **LONG)
    process.wait_for("Epoch 1")
    process.kill(number)
    assert process.wait() == code
    assert "start the same command with --resume" in process.log.read_text()
    position = StateFile(tmp_path / "run" / "state.safetensors").position()
    assert position.epoch >= 1 or position.trained
    assert "Traceback" not in process.log.read_text()


def test_a_second_ctrl_c_ends_at_once_and_harms_nothing(zygote: Zygote, tmp_path: Path) -> None:
    process = zygote.start(tmp_path / "run", mishap={"kind": "sleep", "step": 7}, epochs=2)
    process.wait_for("sleep")
    process.kill(signal.SIGINT)
    process.wait_for("finishing this step")  # which would take a minute
    process.kill(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    zygote.run(tmp_path / "run", resume=True, epochs=2)
    zygote.run(tmp_path / "whole", epochs=2)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_full_disk_leaves_the_last_state(zygote: Zygote, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails as on a full one."""
    folder = tmp_path / "run"
    zygote.run(folder, epochs=3, max_steps=7)
    before = (folder / "state.safetensors").read_bytes()
    process = zygote.start(folder, file_limit=len(before) // 2, epochs=3, resume=True)
    assert process.wait() == 1
    text = process.log.read_text()
    assert "disk is full" in text
    assert "untouched" in text
    assert "Traceback" not in text
    assert (folder / "state.safetensors").read_bytes() == before
    assert not list(folder.glob(".*"))
    zygote.run(folder, epochs=3, resume=True)
    zygote.run(tmp_path / "whole", epochs=3)
    assert_same(tmp_path / "whole", folder)


def test_reading_workers_change_nothing(zygote: Zygote, tmp_path: Path) -> None:
    """Nor does stopping a run that has them, with the signal sent to all processes, as clusters do."""
    zygote.run(tmp_path / "without", epochs=2)
    process = zygote.start(tmp_path / "with", epochs=2, workers=2, save_every=0)
    process.wait_for("Epoch 1")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 143, process.log.read_text()
    zygote.run(tmp_path / "with", epochs=2, workers=1, resume=True)
    assert_same(tmp_path / "without", tmp_path / "with")


def test_one_of_two_that_start_together_runs(zygote: Zygote, tmp_path: Path) -> None:
    processes = [zygote.start(tmp_path / "run", epochs=2, resume=True) for _ in range(4)]
    codes = wait_all(processes)
    assert sorted(codes)[0] == 0, said(processes)
    for process, code in zip(processes, codes, strict=True):
        text = process.log.read_text()
        assert "Traceback" not in text
        if code:
            assert text.count("Error:") == 1
            assert "is in use by another run (process" in text
    zygote.run(tmp_path / "whole", epochs=2)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_second_run_is_refused_and_a_killed_one_forgotten(zygote: Zygote, tmp_path: Path) -> None:
    first = zygote.start(tmp_path / "run", **LONG)
    first.wait_for("Epoch 1")
    second = zygote.start(tmp_path / "run", epochs=2, resume=True)
    assert second.wait() == 1
    assert f"in use by another run (process {first.pid}, since" in second.log.read_text()
    first.kill()
    third = zygote.run(tmp_path / "run", epochs=2, resume=True)  # the killed process isn't even waited for
    assert f"(process {first.pid}, since" in third.log.read_text()
    assert "has ended without a word" in third.log.read_text()
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_that_lost_its_folder_stops(zygote: Zygote, tmp_path: Path) -> None:
    """Stopped for so long that another machine took it for dead: it wakes up, and must not write."""
    process = zygote.start(tmp_path / "run", **LONG)
    process.wait_for("Epoch 1")
    lock = tmp_path / "run" / LOCK
    holder = json.loads(lock.read_text())
    (tmp_path / "other").write_text(json.dumps({**holder, "token": "0" * 32, "host": "far"}))
    os.replace(tmp_path / "other", lock)
    assert process.wait() == 1
    assert process.log.read_text().count("Another run has taken over --output-dir") == 1
    assert lock.exists()


# -- several processes ------------------------------------------------------------------------


def test_two_processes_train_as_one(zygote: Zygote, tmp_path: Path) -> None:
    """Without luck in it: the same losses for the same global batch; and every image evaluated once."""
    options = {"augmentation": NO_CHANCE, "drop_path": 0.0, "recon_weight": 0.0, "epochs": 3}
    zygote.run(tmp_path / "one", batch_size=8, **options)
    text = run_group(zygote, tmp_path / "two", batch_size=4, **options)
    assert "Global batch 8 (4 x 2 processes), learning rate 0.00078125 (0.05 x 8 / 512), 5 steps per epoch" in text
    assert text.count("Epoch 1:") == 1  # said by rank 0 alone
    for one, two in zip(figures(tmp_path / "one"), figures(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_two_processes_resume_to_the_bit(zygote: Zygote, tmp_path: Path) -> None:
    options = {"batch_size": 4, "epochs": 3, "model_ema_decay": 0.9}
    run_group(zygote, tmp_path / "whole", **options)
    processes = start_group(zygote, tmp_path / "cut", **options)
    processes[0].wait_for("Epoch 1")
    processes[1].kill(signal.SIGTERM)  # one is enough: they agree
    assert wait_all(processes) == [143, 143]
    assert said(processes).count("--resume") == 1
    run_group(zygote, tmp_path / "cut", resume=True, **options)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_another_number_of_processes_goes_on_from_the_epoch(zygote: Zygote, tmp_path: Path) -> None:
    run_group(zygote, tmp_path / "run", slurm=True, batch_size=4, epochs=3, max_steps=7)
    process = zygote.run(tmp_path / "run", batch_size=4, epochs=3, resume=True)
    text = process.log.read_text()
    assert "processes 1 (was 2)" in text
    assert "goes back to the start of epoch 2" in text
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_lost_process_ends_the_run_in_one_sentence(zygote: Zygote, tmp_path: Path) -> None:
    processes = start_group(zygote, tmp_path / "run", mishap={"kind": "kill", "step": 7, "rank": 1}, **LONG)
    assert wait_all(processes) == [1, -signal.SIGKILL]
    text = said(processes)
    assert text.count("Error:") == 1
    assert "Another process of this run ended" in text
    assert "Traceback" not in text


def test_an_error_of_one_process_is_told_once_with_its_images(zygote: Zygote, tmp_path: Path) -> None:
    mishap = {"kind": "inf", "step": 3, "rank": 1}
    processes = start_group(zygote, tmp_path / "run", mishap=mishap, batch_size=4)
    assert wait_all(processes) == [1, 1]
    text = said(processes)
    assert text.count("Error:") == 1
    assert "not finite in step 3 of epoch 1" in text
    assert text.count("colour-") == 4  # those of rank 1 only
    assert StateFile(tmp_path / "run" / "state.safetensors").position().updates == 2


def test_a_refusal_is_told_once(zygote: Zygote, tmp_path: Path) -> None:
    """By rank 0, which alone looks; the others end with it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    processes = start_group(zygote, tmp_path / "run", batch_size=4)
    assert wait_all(processes) == [1, 1]
    assert said(processes).count("Error:") == 1
    assert "is not empty" in processes[0].log.read_text()


def torchrun(folder: Path, *arguments: str, options: str, size: int = 2) -> subprocess.Popen[str]:
    how = arguments if "--master-port" in arguments else ("--standalone", *arguments)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", *how]
    return subprocess.Popen(
        [*command, str(Path(__file__).with_name("tiny.py")), str(folder), options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("size", "lost"),
    [(2, 1), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(1, 0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("standalone", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_torchrun_restarts_a_run_that_lost_a_process(
    zygote: Zygote, tmp_path: Path, size: int, lost: int, standalone: bool
) -> None:
    """Also the one that holds the lock; and where all of torchrun's runs have the same id, "none"."""
    options = {"batch_size": 8 // size, "save_every": 0, "mishap": {"kind": "kill", "step": 7, "rank": lost}}
    how = ["--max-restarts=1", *([] if standalone else ["--master-port", str(free_port())])]
    process = torchrun(tmp_path / "run", *how, options=json.dumps(options), size=size)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Going on from step 1 of epoch 2" in errors
    run_group(zygote, tmp_path / "whole", batch_size=8 // size, size=size)
    assert_same(tmp_path / "whole", tmp_path / "run")
    launches = StateFile(tmp_path / "run" / "state.safetensors").info()["launches"]
    assert len(launches["torchrun"]) == 32


@pytest.mark.slow
@pytest.mark.parametrize("options", ['{"runtime": {"device": "nowhere"}}', '{"batch_size": 3}'])
def test_an_error_of_all_processes_is_told_once(tmp_path: Path, options: str) -> None:
    """Whether they have met already or not."""
    process = torchrun(tmp_path / "run", options=options)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("Error: --") == 1


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_too(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "run", options='{"batch_size": 4, "epochs": 500}')
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Epoch 1:"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "start the same command with --resume" in errors
