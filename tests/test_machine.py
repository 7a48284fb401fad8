"""What memory is left: of the machine, of a container, of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcod_cli import machine
from vitcod_cli.machine import available_memory, gigabytes


def test_there_is_some_and_less_than_a_petabyte() -> None:
    left = available_memory()
    assert left is not None
    assert 10**6 < left < 10**15


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limited", ["", "job", "job/step"])
def test_the_tightest_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, limited: str
) -> None:
    """Page cache that can be given up is no loss."""
    root = tmp_path / "memory" if version == 1 else tmp_path
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    for group in ("", "job", "job/step"):
        folder = root / group
        folder.mkdir(parents=True, exist_ok=True)
        tight = group == limited
        none = str(2**63 - 4096) if version == 1 else "max"
        (folder / names[0]).write_text("5000\n" if tight else f"{none}\n")
        (folder / names[1]).write_text("3000\n")
        (folder / "memory.stat").write_text(f"anon 2000\n{cache} 400\n")
    lines = {1: "4:cpu,memory:/job/step\n3:cpuset:/elsewhere\n", 2: "0::/job/step\n"}
    read = Path.read_text

    def read_text(path: Path, **options: str) -> str:
        return lines[version] if str(path) == "/proc/self/cgroup" else read(path, **options)

    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert available_memory() == 2400


def test_a_system_that_says_nothing_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, **_: str) -> str:
        raise FileNotFoundError(path)

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr("os.sysconf", unknown)
    assert available_memory() is None


def test_in_words() -> None:
    assert gigabytes(1.54e12) == "1,540.0 GB"
