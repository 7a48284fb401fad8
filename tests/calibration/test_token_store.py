"""Tokens that don't fit into memory are in a file: the same bits, nothing left behind, and room or a sentence."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from stopping import Never, make_checkpoint, run

import vitcod_cli
from vitcod_cli.artifacts.safetensors_file import open_safetensors
from vitcod_cli.calibration import checks, token_store
from vitcod_cli.calibration.checks import check_memory, step_bytes, tokens_bytes
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.calibration.token_store import TokenStore
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.errors import VitcodError

CPU = torch.device("cpu")
PREPROCESS = Preprocess((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.875)
SETTINGS = CalibrationSettings(calibrate_images=100, calibrate_crops=2, calibrate_batch_size=1)
PIXELS = 200 * 3 * 32 * 32


@pytest.fixture
def masked(tmp_path: Path) -> str:
    return make_checkpoint(tmp_path / "masked.safetensors", masked=True)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    with open_safetensors(folder / "last.safetensors", flag="--resume", framework="pt") as file:
        return {name: file.handle.get_tensor(name) for name in file.handle.keys()}  # noqa: SIM118


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_file_gives_the_same_bits_as_memory(
    masked: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    made = []
    empty = TokenStore.empty
    monkeypatch.setattr(TokenStore, "empty", lambda store, shape: made.append(store) or empty(store, shape))
    runtime = {"precision": precision}
    run("sparse", masked, image_folder, tmp_path / "memory", runtime=runtime)
    assert {store.folder for store in made} == {None}
    made.clear()
    monkeypatch.setattr(token_store, "available_memory", lambda: 1000)
    reporter = Never()
    run("sparse", masked, image_folder, tmp_path / "file", reporter, runtime=runtime)
    assert {store.folder for store in made} == {tmp_path / "file"}
    assert sum("don't fit into memory" in line for line in reporter.lines) == 1
    mine, expected = parameters(tmp_path / "file"), parameters(tmp_path / "memory")
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("file", "memory")]
    assert names[0] == names[1]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_the_file_has_room_and_no_name(tmp_path: Path) -> None:
    tokens = TokenStore(CPU, tmp_path).empty((3, 5, 7))
    assert (tokens.shape, tokens.dtype) == ((3, 5, 7), torch.float32)
    tokens.fill_(2.5)
    assert not list(tmp_path.iterdir())

    def mapped() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]

    assert len(mapped()) == 1
    assert float(tokens[2].sum()) == 2.5 * 35
    del tokens
    assert not mapped()


@pytest.mark.parametrize(
    ("left", "processes", "spilled"),
    [(None, 1, False), (2000, 1, False), (1300, 1, True), (2000, 2, True), (3000, 2, False)],
)
def test_memory_is_taken_while_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int | None, processes: int, spilled: bool
) -> None:
    monkeypatch.setattr(token_store, "available_memory", lambda: left)
    monkeypatch.setattr(token_store, "local_processes", lambda: processes)
    store = TokenStore.choose(1000, 100, CPU, tmp_path)
    assert store == TokenStore(CPU, tmp_path if spilled else None)


@pytest.mark.parametrize(
    ("code", "told"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EOPNOTSUPP, False), (errno.EINVAL, False)],
)
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: bool
) -> None:
    """Told before anything is written; a file system that can't reserve is taken as it is."""

    def refuse(file: int, offset: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    store = TokenStore(CPU, tmp_path)
    if not told:
        assert store.empty((2, 3, 4)).shape == (2, 3, 4)
        return
    with pytest.raises(VitcodError, match="--calibrate-images or --calibrate-crops"):
        store.empty((2, 3, 4))


@pytest.mark.parametrize("scarce", ["nothing", "memory", "disk"])
def test_what_fits_nowhere_is_told_before_images_are_read(
    masked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    """Images and a step must fit into memory, tokens there or on the disk."""
    model = vitcod_cli.load(masked, inference=False)
    tokens, rest = tokens_bytes(model, 200, SETTINGS), PIXELS + step_bytes(model, 200, SETTINGS)
    assert tokens == 5 * 4 * 200 * 17 * 24, "the student's, the teacher's around three blocks"
    monkeypatch.setattr(checks, "available_memory", lambda: rest - (scarce == "memory"))
    monkeypatch.setattr(checks, "free_space", lambda folder: tokens - (scarce == "disk"))
    if scarce == "nothing":
        check_memory(model, PREPROCESS, 1000, SETTINGS, device=CPU, folder=tmp_path / "to be made")
        return
    where = "of main memory" if scarce == "memory" else f"of memory or of the disk of {tmp_path}"
    with pytest.raises(VitcodError, match=rf"{where}, and .*; lower --calibrate-images \(to \d+, say\)"):
        check_memory(model, PREPROCESS, 1000, SETTINGS, device=CPU, folder=tmp_path)


def test_a_disk_without_room_is_no_matter_while_memory_has_some(
    masked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vitcod_cli.load(masked, inference=False)
    monkeypatch.setattr(checks, "available_memory", lambda: 10**9)
    monkeypatch.setattr(checks, "free_space", lambda folder: 0)
    check_memory(model, PREPROCESS, 1000, SETTINGS, device=CPU, folder=tmp_path)
