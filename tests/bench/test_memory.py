"""Peak memory of a pass, and what counts as out of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vitcod_cli.bench import memory
from vitcod_cli.bench.memory import is_out_of_memory, peak_memory, weight_bytes

MIB = 2**20
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


PEAKS = """
import torch
from vitcod_cli.bench.memory import peak_memory
model = torch.nn.Linear(512, 512, bias=False)
kept = []
for mebibytes in (96, 24):
    work = lambda: kept.append(torch.ones(mebibytes * 2**20 // 4).sum())
    print(peak_memory(work, model, torch.device("cpu")) or "")
"""

HELD_BACK = """
import torch
from vitcod_cli.bench.memory import peak_memory
def pieces():
    return [torch.ones(2**14) for _ in range(512)]  # 32 MiB
held = pieces()
kept = torch.ones(2**14)  # above them, so that they do not go back to the system by themselves
del held
print(peak_memory(lambda: pieces().clear(), torch.nn.Identity(), torch.device("cpu")) or "")
"""


def peaks(code: str) -> list[float]:
    """MiB that ``code`` prints, in a process of its own: what other tests leave in this one may be freed, or be
    used again by a pass, at any moment.
    """
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    if not any(found):
        pytest.skip("this system can't reset a process's peak memory")
    return [int(line) / MIB for line in found]


def test_the_peak_of_each_pass_by_itself() -> None:
    first, second = peaks(PEAKS)
    assert first == pytest.approx(97, abs=4), "1 MiB of weights, 96 for the pass"
    assert second == pytest.approx(25, abs=4), "an earlier, higher peak is forgotten"


def test_free_memory_that_the_process_holds_back_counts() -> None:
    [found] = peaks(HELD_BACK)
    assert found == pytest.approx(32, abs=4)


def test_no_peak_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert peak_memory(lambda: None, nn.Linear(2, 2), CPU) is None


def test_weights_shared_by_two_layers_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    assert weight_bytes(model) == 4 * 16 + 3


def test_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value)
