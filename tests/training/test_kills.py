"""Twenty SIGKILLs: whatever the moment, nothing is lost and no half-written file is ever seen."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from runs import assert_same
from safetensors.torch import load
from zygote import Process, Zygote

OPTIONS = {"epochs": 4, "save_every": 0, "model_ema_decay": 0.9, "eval_every": 2}


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run, and how many seconds such a run takes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    start = time.monotonic()
    zygote.run(folder, **OPTIONS)
    return folder, time.monotonic() - start


def check_files(folder: Path) -> None:
    """Every file that shows itself is whole."""
    for path in folder.glob("[!.]*.safetensors"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue  # epoch.safetensors comes and goes
        assert len(load(content)) > 10
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            json.loads(line)


def watch(process: Process, folder: Path, seconds: float) -> None:
    """Look at the files all the time, until it ends or ``seconds`` are over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        check_files(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(zygote: Zygote, tmp_path: Path, whole: tuple[Path, float], seed: int) -> None:
    luck, (expected, seconds) = random.Random(seed), whole
    folder = tmp_path / "run"
    kills = 0
    while kills < 1 + seed % 2:  # every other run is killed twice, the second time while it goes on
        process = zygote.start(folder, resume=True, **OPTIONS)
        watch(process, folder, luck.uniform(0.1, 0.9) * seconds)
        if process.poll() is None:
            process.kill()
        process.wait()
        check_files(folder)
        kills += 1
    zygote.run(folder, resume=True, **OPTIONS)
    check_files(folder)
    assert not list(folder.glob(".*"))
    assert_same(expected, folder)
