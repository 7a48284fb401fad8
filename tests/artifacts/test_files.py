"""Files are written whole or not at all, and what can't be read is told in one sentence."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from vitcod_cli.artifacts.describe import CHECKPOINT, MASK
from vitcod_cli.artifacts.files import atomic_path, remove_leftovers, sha256_of
from vitcod_cli.artifacts.pickled import write_pickled
from vitcod_cli.artifacts.safetensors_file import VERSION, read_safetensors_info, write_safetensors
from vitcod_cli.errors import VitcodError

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Stands for a full disk: no file may grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def sentence(error: pytest.ExceptionInfo[VitcodError]) -> str:
    """The message, once it is known to be one line that ends as a sentence does."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_processes_that_add_to_one_file_lose_nothing(tmp_path: Path) -> None:
    """As several ``eval --results-file`` do: each reads the file, and writes it with a line more."""
    target = tmp_path / "new" / "rows.txt"
    program = f"""
from pathlib import Path
from vitcod_cli.artifacts.files import atomic_path, one_at_a_time
target = Path({str(target)!r})
for _ in range(20):
    with one_at_a_time(target):
        before = target.read_text() if target.exists() else ""
        with atomic_path(target) as temporary:
            temporary.write_text(before + "row\\n")
"""
    run = [sys.executable, "-c", program]
    processes = [subprocess.Popen(run, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert target.read_text() == 60 * "row\n"
    assert os.listdir(target.parent) == ["rows.txt"]


def test_file_appears_whole_with_the_permissions_of_any_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "data.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("content")
        assert not target.exists()
    assert target.read_text() == "content"
    assert os.listdir(target.parent) == ["data.txt"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_safetensors(target, {"x": np.ones(2)}, MASK, {})  # safetensors itself makes private files
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "data.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["data.txt"]


def test_a_killed_writer_leaves_the_old_file_and_what_it_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "data.txt"
    target.write_text("old")
    (tmp_path / "other.txt").write_text("stays")
    code = (
        "import os, signal, sys; from vitcod_cli.artifacts.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    visible = [name for name in os.listdir(tmp_path) if not name.startswith(".")]
    assert sorted(visible) == ["data.txt", "other.txt"]
    assert len(os.listdir(tmp_path)) == 3
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "other.txt"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "real.txt", tmp_path / "link.txt"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_places_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for place, words in (
        (".", "a folder"),
        ("pipe", "not a regular file"),
        ("file/x", "its folder is a file"),
    ):
        with pytest.raises(VitcodError) as error, atomic_path(tmp_path / place) as temporary:
            temporary.touch()
        assert words in sentence(error)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("kind", ["numpy", "torch", "pth"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "data"
    target.write_text("old")
    large = np.ones(1_000_000)
    writers = {
        "numpy": lambda: write_safetensors(target, {"x": large}, MASK, {}),
        "torch": lambda: write_safetensors(target, {"x": torch.from_numpy(large)}, MASK, {}),
        "pth": lambda: write_pickled(target, {"x": torch.from_numpy(large)}),
    }
    with largest_file(100_000), pytest.raises(VitcodError) as error:
        writers[kind]()
    assert "disk is full" in sentence(error)
    assert "untouched" in str(error.value)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["data"]


def test_tensors_of_every_make_come_back_bit_for_bit(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    tensors = {
        "array": np.arange(6, dtype=np.int64).reshape(2, 3),
        "fortran": np.asfortranarray(np.random.default_rng(0).random((3, 5))),
        "shared": whole,
        "same storage": whole[2:],
        "transposed": whole.t(),
        "bfloat16": torch.randn(3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "empty too": torch.zeros(0, 5),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, CHECKPOINT, {"note": "ä"})
    back = load_file(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = torch.as_tensor(tensor)
        assert back[name].dtype == expected.dtype
        assert torch.equal(back[name], expected)
    assert read_safetensors_info(path, kind=CHECKPOINT, flag="--x") == {"note": "ä"}


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_safetensors(tmp_path / name, {"x": np.ones(3), "y": np.zeros(2)}, MASK, {"one": 1, "two": 2})
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    mask, path = tmp_path / "mask.safetensors", tmp_path / "x.safetensors"
    write_safetensors(mask, {"keep": np.ones((1, 1, 2, 2), dtype=bool)}, MASK, {})
    whole = mask.read_bytes()

    def message() -> str:
        with pytest.raises(VitcodError) as error:
            read_safetensors_info(path, kind=CHECKPOINT, flag="--init-from")
        assert sentence(error).startswith(f"--init-from {path} ")
        return str(error.value)

    assert "does not exist" in message()
    path.write_bytes(b"")
    assert "is empty" in message()
    for content in (
        b"\0",
        b"text, and more of it than eight bytes",
        whole[:20],
        whole[:-1],
        whole[:8] + whole,
    ):
        path.write_bytes(content)
        assert "not a whole safetensors file" in message()
    path.write_bytes(whole)
    assert "it seems to be a vitcod mask; give it as --mask" in message()
    save_file({"blocks.0.attn.qkv.weight": np.ones(3)}, path)
    assert "a plain checkpoint" in message()
    save_file({"x": np.ones(3)}, path)
    assert "not vitcod's" in message()
    save_file({"x": np.ones(3)}, path, {"vitcod": json.dumps({"format": CHECKPOINT, "version": VERSION + 1})})
    assert "newer vitcod" in message()
    assert "pip install --upgrade vitcod" in message()
    for broken in ("{", "[]", json.dumps({"format": CHECKPOINT}), json.dumps({"version": "x"})):
        save_file({"x": np.ones(3)}, path, {"vitcod": broken})
        assert "metadata" in message()
    path.unlink()
    path.mkdir()
    assert "is a folder" in message()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VitcodError, match="not a regular file"):
        read_safetensors_info(tmp_path / "pipe", kind=MASK, flag="--mask")


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(VitcodError, match="can't be read"):
        read_safetensors_info("a\0b", kind=MASK, flag="--mask")
    with pytest.raises(VitcodError, match="can't be read"):
        read_safetensors_info("x" * 5000, kind=MASK, flag="--mask")


def test_maps_masks_and_settings_load_without_torch() -> None:
    modules = "vitcod_cli.artifacts." + ", vitcod_cli.artifacts.".join(
        ["mask", "attention_map", "run_directory", "checkpoint", "published", "download"]
    )
    code = f"import sys, {modules}, vitcod_cli.model.settings; print({{'torch', 'timm'}} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
