"""One run at a time in a folder: whose lock it is, when it is stale, and who wins it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from vitcod_cli.artifacts import lock_holder, run_lock
from vitcod_cli.artifacts.lock_holder import Holder, read_holder
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.artifacts.run_lock import LOCK, STALE, RunLock, is_lock
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from vitcod_cli.artifacts.run_lock import RunLock
lock = RunLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
"""A process that holds the lock of the folder until it is killed or its input ends."""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave(folder: Path, age: float = 0.0, **changes: Any) -> Path:
    """A lock that another run has left, whose time is ``age`` seconds ago."""
    path = folder / LOCK
    path.write_text(replace(Holder.this_process("vitcod finetune-dense"), **changes).to_json())
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_lock_says_whose_it_is_and_goes(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    holder = read_holder(tmp_path / LOCK)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert holder.has_ended() is False
    lock.check()
    with pytest.raises(VitcodError, match="another run of this very process"):
        RunLock.acquire(tmp_path)
    assert files(tmp_path) == [LOCK]
    lock.release()
    assert files(tmp_path) == []
    RunLock.acquire(tmp_path).release()


def test_another_process_is_named_while_it_lives_and_forgotten_when_killed(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    with pytest.raises(
        VitcodError, match=rf"process {process.pid}, since 20\d\d-.*: -c .*delete .*{LOCK}"
    ) as error:
        RunLock.acquire(tmp_path)
    assert str(error.value).startswith(f"--output-dir {tmp_path} is in use by another run")
    process.kill()
    lines: list[str] = []
    end = time.monotonic() + 10
    while (
        not os.path.exists(f"/proc/{process.pid}/stat")
        or " Z " not in Path(f"/proc/{process.pid}/stat").read_text()
    ):
        assert time.monotonic() < end
    lock = RunLock.acquire(tmp_path, say=lines.append)  # the dead process isn't even waited for yet: a zombie
    assert len(lines) == 1
    assert f"process {process.pid}" in lines[0]
    process.wait()
    lock.check()
    lock.release()
    assert files(tmp_path) == []


def test_a_number_given_anew_is_another_process(tmp_path: Path) -> None:
    leave(tmp_path, started="1")
    RunLock.acquire(tmp_path).release()


@pytest.mark.parametrize("changes", [{"host": "far"}, {"boot": "another"}, {"namespace": "pid:[7]"}])
@pytest.mark.parametrize("pid", [1, 2**31 - 1])
def test_elsewhere_the_files_time_tells(tmp_path: Path, changes: dict[str, str], pid: int) -> None:
    """Another host, another boot, a container: a process number means nothing here."""
    for age in (0.0, STALE - 60, 60 - STALE):
        leave(tmp_path, age, pid=pid, **changes)
        with pytest.raises(VitcodError, match="in use by another run"):
            RunLock.acquire(tmp_path)
    for age in (STALE + 60, -STALE - 60):  # a clock that was put back leaves times in the future
        leave(tmp_path, age, pid=pid, **changes)
        RunLock.acquire(tmp_path).release()
    assert files(tmp_path) == []


def test_this_machines_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, host="far")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(VitcodError, match="in use by another run"):
        RunLock.acquire(tmp_path)


def whole() -> dict[str, Any]:
    return asdict(Holder.this_process("x"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"token": "',
        "[]",
        "null",
        "[" * 100_000,
        "\xff\x00",
        json.dumps({**whole(), "pid": "1"}),
        json.dumps({**whole(), "pid": -1}),
        json.dumps({**whole(), "pid": 2**70}),
        json.dumps({**whole(), "pid": True}),
        json.dumps({**whole(), "token": "../../x"}),
        json.dumps({**whole(), "host": None}),
        json.dumps({**whole(), "more": 1}),
    ],
)
def test_a_lock_that_cannot_be_read_is_one_until_it_is_old(tmp_path: Path, content: str) -> None:
    path = tmp_path / LOCK
    path.write_text(content)
    with pytest.raises(VitcodError, match="in use by another run"):
        RunLock.acquire(tmp_path)
    assert path.read_text() == content
    os.utime(path, (1, 1))
    RunLock.acquire(tmp_path).release()
    assert files(tmp_path) == []


def test_what_a_lock_says_is_shown_plainly(tmp_path: Path) -> None:
    leave(tmp_path, host="far\x1b[31m\n", command="x" * 10_000)
    with pytest.raises(VitcodError) as error:
        RunLock.acquire(tmp_path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_a_lock_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    for name, make in (("a", os.mkfifo), ("b", os.mkdir), ("c", lambda path: os.symlink("nowhere", path))):
        folder = tmp_path / name
        folder.mkdir()
        make(folder / LOCK)
        with pytest.raises(VitcodError, match="no file that vitcod made"):
            RunLock.acquire(folder)
        assert files(folder) == [LOCK]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("left", ["nothing", "stale", "junk", "stale with a dead taker"])
def test_of_many_exactly_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, left: str) -> None:
    """Threads stand for processes: nothing in the lock knows of threads."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(15):
        if left == "junk":
            (tmp_path / LOCK).write_text("{")
            os.utime(tmp_path / LOCK, (1, 1))
        elif left != "nothing":
            token = read_holder(leave(tmp_path, started="1"))
            assert token is not None
            if "taker" in left:
                right = tmp_path / f".{LOCK}.{token.token}"
                right.write_text(replace(Holder.this_process("x"), started="1").to_json())
        winners: list[RunLock] = []
        losers: list[str] = []
        begin = threading.Barrier(8)

        def run(winners: list[RunLock] = winners, losers: list[str] = losers, begin: Any = begin) -> None:
            begin.wait()
            try:
                winners.append(RunLock.acquire(tmp_path))
            except VitcodError as error:
                losers.append(str(error))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1, losers
        assert len(losers) == 7
        winners[0].check()
        winners[0].release()
        assert files(tmp_path) == []


def test_a_lock_lives_by_its_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    lock = RunLock.acquire(tmp_path)
    for _ in range(3):
        os.utime(tmp_path / LOCK, (1, 1))
        end = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 1:
            assert time.monotonic() < end
    lock.release()


def test_who_loses_his_lock_is_told_and_leaves_the_others(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    leave(tmp_path, host="far")
    with pytest.raises(VitcodError, match="Another run has taken over"):
        lock.check()
    lock.release()
    assert files(tmp_path) == [LOCK]


def test_a_lock_that_was_removed_alone_comes_back_and_a_folder_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lock = RunLock.acquire(folder)
    (folder / LOCK).unlink()
    lock.check()
    assert files(folder) == [LOCK]
    (folder / LOCK).unlink()
    folder.rmdir()
    with pytest.raises(VitcodError, match="was removed while the run went on"):
        lock.check()
    lock.release()
    assert not folder.exists()


def test_a_restarted_run_waits_for_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    process = start_holder(tmp_path)
    threading.Timer(0.5, process.kill).start()
    RunLock.acquire(tmp_path, wait=True, say=lines.append).release()
    process.wait()
    assert lines[0].startswith("Waiting for the run")
    monkeypatch.setattr(run_lock, "_PATIENCE", 0.3)
    lock = RunLock.acquire(tmp_path)
    with pytest.raises(VitcodError, match="very process"):
        RunLock.acquire(tmp_path, wait=True)
    lock.release()


def test_a_restarted_run_waits_for_a_sign_of_life_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave(tmp_path, host="far", age=3)
    threading.Timer(0.5, os.utime, (path,)).start()
    with pytest.raises(VitcodError, match="in use"):
        RunLock.acquire(tmp_path, wait=True)
    monkeypatch.setattr(run_lock, "STALE", 1.0)
    leave(tmp_path, host="far")
    RunLock.acquire(tmp_path, wait=True).release()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(VitcodError, match=r"can't be written to \(Permission denied\)"):
        RunLock.acquire(tmp_path)


def test_what_killed_runs_have_left_goes_when_it_is_old(tmp_path: Path) -> None:
    old, new = tmp_path / f".{LOCK}.old.tmp", tmp_path / f".{LOCK}.new.tmp"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    RunLock.acquire(tmp_path).release()
    assert files(tmp_path) == [new.name]
    assert is_lock(new.name)
    assert is_lock(LOCK)
    assert not is_lock("config.yaml")


def test_without_proc_a_living_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac, say."""
    monkeypatch.setattr(lock_holder, "_started", lambda pid: None)
    leave(tmp_path)
    with pytest.raises(VitcodError, match="very process"):
        RunLock.acquire(tmp_path)
    leave(tmp_path, pid=2**31 - 1)
    RunLock.acquire(tmp_path).release()


def test_a_new_folder_that_cannot_be_locked_goes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, say."""

    def full(*_: object, **__: object) -> None:
        raise VitcodError("--output-dir can't be written to (No space left on device); choose another folder.")

    monkeypatch.setattr(RunLock, "acquire", full)
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(VitcodError, match="can't be written to"):
            RunDirectory.open(OutputSettings(output_dir=str(tmp_path / name)), SilentReporter())
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
