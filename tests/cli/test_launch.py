"""Two processes, started in each of the ways that users start them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_line import ROOT, Cli
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--nproc_per_node=2"]
TINY = "--model deit_tiny_patch16_224 --img-size 32 --model-kwargs patch_size=8 embed_dim=24 depth=2 num_heads=3"


def start(words: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **environment}
    return subprocess.Popen(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(words: list[str], cwd: Path, **environment: str) -> str:
    process = start(words, cwd, **environment)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def test_torchrun_of_the_launcher_in_a_checkout(tiny_checkpoint: Path, image_folder: Path, cli: Cli) -> None:
    """The literal ``torchrun --nproc_per_node=2 vitcod finetune-sparse ...``."""
    assert cli("dump-attn", "--checkpoint", tiny_checkpoint, "--data-path", image_folder, "--workers", 0).code == 0
    assert (
        cli("gen-mask", "--attn-map", "attn.safetensors", "--sparsity", 0.5, "--output", "m.safetensors").code == 0
    )
    here = tiny_checkpoint.parent
    words = f"finetune-sparse --init-from {tiny_checkpoint} --mask {here}/m.safetensors --data-path {image_folder}"
    quick = f"--max-steps 1 --batch-size 2 --calibrate-steps 1 --workers 0 --output-dir {here}/run --json"
    out = run([*TORCHRUN, "vitcod", *words.split(), *quick.split()], cwd=ROOT)
    assert json.loads(out)["images"] == 13, "said once, every image counted once"
    assert "blocks.0.attn.keep" in load_file(here / "run/last.safetensors")
    config = yaml.safe_load((here / "run/config.yaml").read_text())
    assert config["nproc_per_node"] == 2, "so that --config repeats the run without torchrun, too"


def test_torchrun_of_the_module_counts_every_image_once(
    tiny_checkpoint: Path, image_folder: Path, cli: Cli, tmp_path: Path
) -> None:
    words = ["eval", "--checkpoint", str(tiny_checkpoint), "--data-path", str(image_folder)]
    words += ["--workers", "0", "--batch-size", "3", "--json"]
    one = json.loads(cli(*words).out)
    two = json.loads(run([*TORCHRUN, "-m", "vitcod_cli", *words], cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert two["images"] == one["images"] == 13
    assert two["acc1"] == one["acc1"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_torchrun_of_the_console_script_gives_the_same_map(
    tiny_checkpoint: Path, image_folder: Path, cli: Cli, tmp_path: Path
) -> None:
    words = ["dump-attn", "--checkpoint", str(tiny_checkpoint), "--data-path", str(image_folder), "--workers", "0"]
    assert cli(*words, "--output", "one.safetensors").code == 0
    # An installed `vitcod` if there is one, else the checkout's launcher.
    path = os.pathsep.join([str(BIN), *([] if (BIN / "vitcod").exists() else [str(ROOT)]), os.environ["PATH"]])
    run([*TORCHRUN, "--no-python", "vitcod", *words, "--output", "two.safetensors"], cwd=tmp_path, PATH=path)
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two["attention"], one["attention"], rtol=0, atol=1e-6)
    assert torch.equal(two["num_images"], one["num_images"])


def test_our_own_launcher(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    """From anywhere, by the launcher's path; then a mistake, told once, without torchrun's traceback."""
    vitcod = [sys.executable, str(ROOT / "vitcod"), "eval", "--nproc_per_node", "2"]
    words = ["--checkpoint", str(tiny_checkpoint), "--data-path", str(image_folder), "--workers", "0", "--json"]
    assert json.loads(run([*vitcod, *words], cwd=tmp_path))["images"] == 13
    wrong = start([*vitcod, "--checkpoint", "nowhere.pth", "--data-path", str(image_folder)], cwd=tmp_path)
    out, err = wrong.communicate(timeout=240)
    assert wrong.returncode == 1
    assert out == ""
    lines = [
        line for line in err.splitlines() if "connected peer ranks" not in line
    ]  # torch 2.8's gloo says hello
    assert re.fullmatch(r"Error: --checkpoint nowhere\.pth .*", "\n".join(lines)), err


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that no launcher has touched, and a launch that would be seen."""

    def launched(*_: object) -> None:
        raise AssertionError("launched")

    for name in list(os.environ):
        if name.startswith(("TORCHELASTIC", "SLURM_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("vitcod_cli.cli.options.launch", launched)
    monkeypatch.setattr("vitcod_cli.cli.launch.usable_cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return monkeypatch


EVAL = ("eval", "--checkpoint", "nowhere.pth", "--data-path", "nowhere")


@pytest.mark.parametrize("count", ["-3", "0", "10000", "99999999999999999999"])
@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.usefixtures("alone")
def test_a_number_of_processes_that_cannot_be(cli: Cli, count: str, from_file: bool) -> None:
    Path("c.yaml").write_text(f"nproc_per_node: {count}")
    words = ("--config", "c.yaml") if from_file else (f"--nproc-per-node={count}",)
    assert cli(*EVAL, *words).error == f"--nproc-per-node must be between 1 and 1024, not {count}."


def test_more_processes_than_the_machine_takes(cli: Cli, alone: pytest.MonkeyPatch) -> None:
    assert "(cores: 2); start at most 8" in cli(*EVAL, "--nproc-per-node", 9).error
    with pytest.raises(AssertionError, match="launched"):
        cli(*EVAL, "--nproc-per-node", 8)
    alone.setattr(torch.cuda, "device_count", lambda: 4)
    assert "GPUs (4)" in cli(*EVAL, "--nproc-per-node", 5).error
    with pytest.raises(AssertionError, match="launched"):
        cli(*EVAL, "--nproc-per-node", 5, "--device", "cpu")


def test_a_number_of_processes_that_torchrun_has_not_started(cli: Cli, alone: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}.items():
        alone.setenv(name, value)
    alone.setattr("vitcod_cli.cli.app.end_with_parent", lambda: None)
    alone.setenv("LOCAL_WORLD_SIZE", "4")
    assert "torchrun has started 4" in cli(*EVAL, "--nproc-per-node", 2).error
    assert "torchrun has started 4" in cli(*EVAL, "--nproc-per-node", 1).error
    assert "nowhere.pth does not exist" in cli(*EVAL, "--nproc-per-node", 4).error
    Path("c.yaml").write_text("nproc_per_node: 2")  # a run's file can be repeated on another machine
    assert "nowhere.pth does not exist" in cli(*EVAL, "--config", "c.yaml").error
    alone.delenv("LOCAL_WORLD_SIZE")
    alone.delenv("TORCHELASTIC_RUN_ID")
    alone.setenv("WORLD_SIZE", "2")
    assert "all processes are started already" in cli(*EVAL, "--nproc-per-node", 2).error


def test_processes_that_cannot_be_started(cli: Cli, alone: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    alone.undo()
    alone.setattr("torch.distributed.run.run", failing)
    assert "can't be started (Resource temporarily unavailable)" in cli(*EVAL, "--nproc-per-node", 2).error
    assert "VITCOD_LAUNCHER_PID" not in os.environ


def test_tasks_of_srun_are_one_run(tiny_checkpoint: Path, image_folder: Path, tmp_path: Path) -> None:
    """Without MASTER_ADDR: it comes from SLURM's own variables."""
    words = [sys.executable, "-m", "vitcod_cli", "eval", "--checkpoint", str(tiny_checkpoint)]
    words += ["--data-path", str(image_folder), "--workers", "0", "--json"]
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "64", "PYTHONPATH": str(ROOT)}
    tasks = [start(words, tmp_path, **slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"]
    (first, error), (second, _) = [task.communicate(timeout=240) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], error
    assert json.loads(first)["images"] == 13
    assert second == "", "rank 0 says it"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_reaches_the_processes(
    image_folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = f"finetune-dense --nproc-per-node 2 {TINY} --data-path {image_folder} --epochs 100000 --batch-size 4"
    launcher = [sys.executable, str(ROOT / "vitcod"), *words.split(), "--workers", "0", "--output-dir", "run"]
    process = start(launcher, tmp_path)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Epoch 1:"):
            break
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    said.append(rest)
    assert process.returncode == code, "".join(said)
    assert "Traceback" not in "".join(said)
    assert "--resume" in rest
    assert (tmp_path / "run/state.safetensors").exists()
