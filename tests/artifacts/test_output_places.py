"""Where a file is to be written is tried before the work, and what killed writers left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, Cli
from safetensors.numpy import load_file

from vitcod_cli.artifacts import files, temporary
from vitcod_cli.artifacts.describe import MASK
from vitcod_cli.artifacts.files import atomic_path, free_folder, free_path, remove_leftovers
from vitcod_cli.artifacts.safetensors_file import write_safetensors
from vitcod_cli.errors import VitcodError

HOLD = """
import sys, time
from vitcod_cli.artifacts.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_text(sys.argv[2])
    print("writing", flush=True)
    sys.stdin.readline()
"""


def refusal(path: object, **options: object) -> str:
    with pytest.raises(VitcodError) as error:
        free_path(path, False, **options)  # type: ignore[arg-type]
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing ``tmp_path / "held"``."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "held"), "theirs"]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "the name is empty"),
        ("folder/", "it is a folder; name a file in it"),
        ("missing/", "it is a folder; name a file in it"),
        ("missing/.", "it is a folder; name a file in it"),
        ("..", "it is a folder; name a file in it"),
        ("folder", "it is a folder; name a file in it"),
        ("pipe", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("file/x", "its folder is a file"),
        ("file/x/y", "its folder is a file"),
        ("x" * 300, "choose a shorter name"),
        ("x" * 300 + "/y", "choose a shorter name"),
        ("new/" + "ä" * 200, "choose a shorter name"),
        ("a\0b", "null character"),
        ("link", "it is a folder"),
        ("\ud800", "encoding"),
    ],
)
def test_what_no_file_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("file").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    before = sorted(os.listdir())
    text = refusal(name)
    assert text.startswith("--output ")
    assert words in text
    with pytest.raises(VitcodError), atomic_path(name) as temporary:
        temporary.touch()
    assert sorted(os.listdir()) == before, "nothing was made, nothing was left"


def test_a_folder_is_really_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes say nothing to root, and nothing of read-only and full disks."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("/proc/x.safetensors", "/sys/new/x.safetensors"):
        assert "can't be written (" in refusal(name)
    monkeypatch.setattr(files.os, "fsync", full)
    assert "disk is full" in refusal(tmp_path / "new" / "x")
    assert os.listdir(tmp_path) == []


def test_a_try_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.safetensors"
    assert free_path(path, False) == path
    assert free_folder(path.parent) == path.parent
    assert os.listdir(tmp_path) == []
    path.parent.mkdir(parents=True)
    path.write_text("old")
    assert free_path(path, True) == path
    assert (path.read_text(), os.listdir(path.parent)) == ("old", ["x.safetensors"])


def test_folders_made_for_a_file_that_was_not_written_go_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a" / "b" / "x"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127, "\U0001f600" * 63, os.fsdecode(b"\xff" * 255)):
        with atomic_path(free_path(tmp_path / name, False)) as temporary:
            temporary.write_text("content")
        assert (tmp_path / name).read_text() == "content"
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize(
    "environment", [{}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["utf-8", "ascii"]
)
def test_names_that_are_no_text_in_this_locale(tmp_path: Path, environment: dict[str, str]) -> None:
    """safetensors gets such a path from us whole."""
    code = (
        "import os, sys, numpy as np; from vitcod_cli.artifacts.safetensors_file import write_safetensors\n"
        "for name in (b'\\xff', b'\\xc3\\xa4'):\n"
        "    path = os.path.join(os.fsencode(sys.argv[1]), name, name)\n"
        "    write_safetensors(os.fsdecode(path), {'x': np.ones(2)}, 'm', {})"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, env={**os.environ, **environment}, check=True)
    for name in (b"\xff", "ä".encode()):
        path = os.path.join(os.fsencode(tmp_path), name, name)
        assert load_file(os.fsdecode(path))["x"].tolist() == [1, 1]
        assert os.listdir(os.path.dirname(path)) == [name]


def test_a_name_outside_the_locale(tmp_path: Path) -> None:
    """From Python or YAML: a command line holds what the locale can say."""
    code = (
        "from vitcod_cli.artifacts.files import free_path; from vitcod_cli.errors import VitcodError\n"
        "try: free_path('\\xe4', False)\nexcept VitcodError as error: print(error)"
    )
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = {"cwd": tmp_path, "env": {**environment, "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **words)  # type: ignore[call-overload]
    assert "LC_ALL" in done.stdout


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    source, link = tmp_path / "source", tmp_path / "link"
    source.touch()
    link.symlink_to(source)
    for path in (source, link):
        with pytest.raises(VitcodError, match="is read by this command"):
            free_path(path, True, inputs=(None, "https://example.org/x", "a\0b", str(source)))
    free_path(tmp_path / "other", True, inputs=[source])


def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for name, words in (
        ("", "the name is empty"),
        ("file", "is a file; name a folder"),
        ("file/x", "its folder is a file"),
        ("/proc/x", "can't be written"),
        ("x" * 300, "choose a shorter name"),
    ):
        with pytest.raises(VitcodError, match=words) as error:
            free_folder(name)
        assert str(error.value).startswith("--output-dir ")
    for name in (".", "new/", "new/folder", "~"):
        free_folder(name)
    assert os.listdir() == ["file"]


def test_what_a_killed_writer_left_goes_with_the_next_file(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert len(hidden(tmp_path)) == 1
    with atomic_path(tmp_path / "other") as temporary:
        temporary.write_text("ours")
    assert os.listdir(tmp_path) == ["other"]


def test_what_a_living_writer_has_begun_stays(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """Two write one file: each is whole, and the last wins."""
    with atomic_path(tmp_path / "held") as ours:
        ours.write_text("ours")
    remove_leftovers(tmp_path)
    free_path(tmp_path / "held", True)
    assert len(hidden(tmp_path)) == 1
    assert (tmp_path / "held").read_text() == "ours"
    holder.communicate("\n")
    assert holder.returncode == 0
    assert (tmp_path / "held").read_text() == "theirs"
    assert hidden(tmp_path) == []


def test_another_process_of_the_same_number(tmp_path: Path) -> None:
    """Its start tells it from the dead one; of a process that can't be asked, a day's silence does."""
    machine, pid = temporary._machine(), os.getpid()
    start = int(temporary._state_of(pid)[1])
    names = {
        f".a.vitcod-{machine}-{pid}-{start}-x.tmp": False,
        f".a.vitcod-{machine}-{pid}-{start + 1}-x.tmp": True,
        f".a.vitcod-{machine}-{2**31}-{start}-x.tmp": True,
        f".a.vitcod-{machine}-{2**80}-{start}-x.tmp": True,
        f".a.vitcod-00000000-{pid}-{start}-x.tmp": False,
        ".a.vitcod-abcdefgh.tmp": False,
        ".a.vitcod-00000000-1-1-old.tmp": True,
        ".a.vitcod-oldername.tmp": True,
        ".something.tmp": False,
        "a.vitcod-oldername.tmp": False,
    }
    for name in names:
        (tmp_path / name).mkdir()
        if "old" in name:
            os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".a.vitcod-writesnow.tmp").mkdir()
    (tmp_path / ".a.vitcod-writesnow.tmp" / "file").touch()
    os.utime(tmp_path / ".a.vitcod-writesnow.tmp", (1, 1))
    (tmp_path / ".a.vitcod-link.tmp").symlink_to(tmp_path)
    remove_leftovers(tmp_path)
    stay = {name for name, goes in names.items() if not goes} | {".a.vitcod-writesnow.tmp", ".a.vitcod-link.tmp"}
    assert set(os.listdir(tmp_path)) == stay


def test_many_tries_at_once(tmp_path: Path) -> None:
    """Each makes the missing folder and removes it again: none meets an error."""
    code = (
        "import sys; from vitcod_cli.artifacts.files import free_path\n"
        "for _ in range(50): free_path(sys.argv[1], False)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a" / "b" / "x")]
    processes = [subprocess.Popen(words, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [names for _, _, names in os.walk(tmp_path) if names] == []
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("place", ["", "here.npy", "here.npy/x", "/proc/x", "x" * 300, "a\0b"])
def test_each_command_tries_its_folder(cli: Cli, place: str) -> None:
    np.save("here.npy", np.zeros((1, 1, 2, 3)))
    for words in (("plot", "here.npy"), ("gen-mask", "--attn-map", "here.npy"), ("demo",)):
        assert cli(*words, "--output-dir", place).error.startswith("--output-dir "), words
    assert os.listdir() == ["here.npy"]


@pytest.mark.parametrize("place", ["", "out/", "here.npy/x.safetensors", "/proc/x.safetensors", "x" * 300])
def test_each_command_tries_before_it_works(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The inputs are not even looked at: these are no maps and no checkpoints."""
    np.save("here.npy", np.zeros((1, 1, 2, 3)))
    Path("none.safetensors").write_bytes(b"none")
    commands = [
        ("gen-mask", "--attn-map", "here.npy"),
        ("export", "--checkpoint", "none.safetensors"),
        ("convert", "here.npy"),
        ("dump-attn", "--checkpoint", "none.safetensors", "--data-path", "nowhere"),
    ]
    if place == "out/":  # of convert a folder, to write into
        commands.remove(("convert", "here.npy"))
    for command in commands:
        ending = place if command[0] != "export" or not place or place[-1] in "/s" else f"{place}.pt2"
        assert cli(*command, "--output", ending).error.startswith("--output "), command
    assert sorted(os.listdir()) == ["here.npy", "none.safetensors"]


def test_sigkill_while_the_place_is_tried_leaves_nothing_visible(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from vitcod_cli.artifacts import files\n"
        "files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.free_path(sys.argv[1], False)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    write_safetensors(tmp_path / "x", {"x": np.ones(1)}, MASK, {})
    assert os.listdir(tmp_path) == ["x"]
