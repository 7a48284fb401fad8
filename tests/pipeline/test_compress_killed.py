"""``vitcod compress`` killed at any moment, and gone on with: the same model in the end."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT
from safetensors.torch import load_file

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", "32", "--num-classes", "5")
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
QUICK = (
    "--align-steps",
    "20",
    "--calibrate-steps",
    "60",
    "--calibrate-images",
    "16",
    "--calibrate-batch-size",
    "4",
)


@pytest.mark.slow
def test_killed_at_random_moments(run_cli: Any, image_folder: Path, tmp_path: Path) -> None:
    data = ("--data-path", str(image_folder), "--workers", "0", "--batch-size", "10")
    made = run_cli(
        "finetune-dense", *MODEL, *KWARGS, *data, "--epochs", 0, "--no-repeated-aug", "--output-dir", "d"
    )
    assert made.returncode == 0, made.stderr
    words = ("compress", "--init-from", "d/last.safetensors", *data, *QUICK, "--sparsity", "0.6", "--threads", "1")
    start = time.monotonic()
    assert run_cli(*words, "--output-dir", "whole").returncode == 0
    seconds = time.monotonic() - start
    command = [sys.executable, "-m", "vitcod_cli", *words, "--output-dir", "killed", "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    moments = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(seconds * (0.4 + 0.55 * moments.random()))
        process.kill()
        process.wait()
        for path in (tmp_path / "killed").rglob("*.safetensors"):
            if not path.name.startswith("."):
                load_file(path)  # whole, or not there
    finished = run_cli(*words, "--output-dir", "killed", "--resume")
    assert finished.returncode == 0, finished.stderr
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == actual.keys()
    assert all(bool((actual[name] == tensor).all()) for name, tensor in expected.items())
