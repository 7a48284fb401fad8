"""Files of strangers: whatever is in them, reading takes no more than the file's size, runs nothing, says why."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitcod_cli.artifacts import checksum
from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map, write_attention_map
from vitcod_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
from vitcod_cli.artifacts.files import checked_path
from vitcod_cli.artifacts.mask import Mask, read_mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.safetensors_file import read_safetensors_info, write_safetensors
from vitcod_cli.errors import VitcodError

CONFIG = ModelConfig(model="deit_tiny_patch16_224", num_classes=5, img_size=(32, 32))
WEIGHTS = {"head.weight": torch.ones(5, 4)}
ATTENTION = np.full((1, 2, 3, 3), 1 / 3, dtype=np.float32)


def refusal(read: Callable[..., object], path: Path | str, flag: str = "--checkpoint") -> str:
    with pytest.raises(VitcodError) as error:
        read(path, flag)
    message = str(error.value)
    assert message.startswith(f"{flag} {path}")
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 1500
    return message


# -- bytes that changed -----------------------------------------------------------------------


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["checkpoint", "map", "mask"])
def test_a_flipped_bit_in_the_data_is_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    write: dict[str, Callable[[], None]] = {
        "checkpoint": lambda: write_checkpoint(path, WEIGHTS, CONFIG, {}),
        "map": lambda: write_attention_map(path, AttentionMap(ATTENTION, 3)),
        "mask": lambda: write_mask(path, Mask(np.ones((1, 2, 3, 3), dtype=bool))),
    }
    read = {"checkpoint": read_checkpoint, "map": read_attention_map, "mask": read_mask}[kind]
    write[kind]()
    read(path, "--x")
    size = path.stat().st_size
    for at in (size - 1, size - 10):
        write[kind]()
        read(path, "--x")
        flipped(path, at)
        assert "damaged" in refusal(read, path, "--x")


@pytest.mark.parametrize(("old", "new"), [(b"checksum", b"checksqm"), (b'sum\\": \\"', b'sum\\": \\"~')])
def test_a_checksum_that_is_damaged_itself(tmp_path: Path, old: bytes, new: bytes) -> None:
    """Such a file is not taken for one of an older vitcod, which has none."""
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, WEIGHTS, CONFIG, {})
    content = path.read_bytes()
    at = content.index(old)
    content = content[:at] + new + content[at + len(new) :]
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "damaged" in refusal(read_checkpoint, path)


def test_a_file_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looked = tmp_path / "x.safetensors", list[Path]()
    digest = checksum._digest
    write_checkpoint(path, WEIGHTS, CONFIG, {})
    monkeypatch.setattr(checksum, "_digest", lambda path, at: looked.append(path) or digest(path, at))  # type: ignore[func-returns-value]
    read_safetensors_info(path, kind="checkpoint", flag="--x")
    assert looked == []
    for _ in range(3):
        read_checkpoint(path, "--x")
    assert len(looked) == 1


def test_files_without_a_checksum_are_read_as_before(tmp_path: Path) -> None:
    old = {"format": "checkpoint", "version": 1, "model_config": CONFIG.to_dict(), "epoch": 3}
    save_file(WEIGHTS, tmp_path / "old.safetensors", {"vitcod": json.dumps(old)})
    checkpoint = read_checkpoint(tmp_path / "old.safetensors", "--checkpoint")
    assert (checkpoint.config, checkpoint.info) == (CONFIG, {"epoch": 3})
    assert torch.equal(checkpoint.state_dict["head.weight"], WEIGHTS["head.weight"])


def test_what_the_caller_says_stands_beside_what_the_file_says_of_itself(tmp_path: Path) -> None:
    path, digits = tmp_path / "x.safetensors", "f" * 64
    info = {"checksum": digits, "args": {"checksum": digits, "text": '"checksum": "' + digits + '"'}}
    write_safetensors(path, {"x": np.ones(3)}, "mask", info)
    assert read_safetensors_info(path, kind="mask", flag="--x") == {"args": info["args"]}
    write_checkpoint(path, {**WEIGHTS, '{\\"checksum\\": \\"' + digits: torch.ones(1)}, CONFIG, info)
    assert read_checkpoint(path, "--x").info == {"args": info["args"]}


def test_metadata_is_read_without_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, WEIGHTS, CONFIG, {"epoch": 3})
    flipped(path, path.stat().st_size - 1)
    assert read_safetensors_info(path, kind="checkpoint", flag="--x")["epoch"] == 3


# -- what a file says of itself ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        '{"format": "checkpoint", "version": ' + "[" * 100_000,
        "Infinity",
        "NaN",
        "[]",
        '"text"',
        "null",
        "3",
        '{"format": "checkpoint", "version": 1e400}',
        '{"format": "checkpoint", "version": NaN}',
        '{"format": "checkpoint", "version": true}',
        '{"format": "checkpoint", "version": -1}',
        '{"format": "checkpoint", "version": 1.0}',
        '{"format": "checkpoint", "version": "1"}',
        '{"format": "checkpoint", "version": ' + "9" * 5000 + "}",
        '{"version": null}',
    ],
    ids=lambda text: text[:50],
)
def test_metadata_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(WEIGHTS, path, {"vitcod": text})
    for read in (read_checkpoint, read_mask, read_attention_map):
        assert "metadata that can't be read" in refusal(read, path)


def test_a_format_of_another_type(tmp_path: Path) -> None:
    for kind in ([], {}, None, 3, "x" * 10_000):
        save_file(WEIGHTS, tmp_path / "x", {"vitcod": json.dumps({"format": kind, "version": 1})})
        assert "is not a vitcod" in refusal(read_mask, tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 5.0}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 10**30}, "num_classes"),
        ({"img_size": [224.0, 224]}, "img_size"),
        ({"img_size": [0, 224]}, "img_size"),
        ({"img_size": [-32, 32]}, "img_size"),
        ({"img_size": [32, 32, 32]}, "img_size"),
        ({"img_size": 32}, "img_size"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"svd_type": ["x"]}, "svd_type"),
        ({"model_kwargs": {"depth": 2.0}}, "depth"),
        ({"model_kwargs": {"depth": 10**6}}, "depth"),
        ({"model_kwargs": {"embed_dim": "wide"}}, "embed_dim"),
        ({"model_kwargs": {"embed_dim": "w" * 10**6}}, "embed_dim"),
        ({"model_kwargs": {"mlp_ratio": float("nan")}}, "mlp_ratio"),
        ({"model_kwargs": {"mlp_ratio": float("inf")}}, "mlp_ratio"),
        ({"model_kwargs": {"qk_norm": 1}}, "qk_norm"),
        ({"model_kwargs": {"norm_layer": {"a": 1}}}, "norm_layer"),
        ({"model_kwargs": {"x" * 10**5: 1}}, "is refused"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_model_that_can_not_be(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    info = {"model_config": {**CONFIG.to_dict(), **change}}
    write_safetensors(tmp_path / "x", WEIGHTS, "checkpoint", info)
    assert words in refusal(read_checkpoint, tmp_path / "x")


@pytest.mark.parametrize("count", ["x", -3, 1.5, True, 4, 10**30, [1], float("nan")])
def test_prefix_tokens_that_can_not_be(tmp_path: Path, count: Any) -> None:
    write_attention_map(tmp_path / "map", AttentionMap(ATTENTION, 3, {"num_prefix_tokens": count}))
    assert "num_prefix_tokens" in refusal(read_attention_map, tmp_path / "map")
    write_mask(tmp_path / "mask", Mask(ATTENTION > 0, {"num_prefix_tokens": count}))
    assert "num_prefix_tokens" in refusal(read_mask, tmp_path / "mask")


@pytest.mark.parametrize("config", [None, [], "x", {}, {"model": 3}])
def test_a_map_of_no_model(tmp_path: Path, config: Any) -> None:
    write_attention_map(tmp_path / "map", AttentionMap(ATTENTION, 3, {"model_config": config}))
    assert "names no model" in refusal(read_attention_map, tmp_path / "map")


@pytest.mark.parametrize("args", [[1], "x", 3, None, {"a": [[]]}])
def test_args_of_ours(tmp_path: Path, args: Any) -> None:
    for _ in range(60 if isinstance(args, dict) else 0):
        args = {"a": args}
    info = {"model_config": CONFIG.to_dict(), "args": args}
    write_safetensors(tmp_path / "x", WEIGHTS, "checkpoint", info)
    assert "args" in refusal(read_checkpoint, tmp_path / "x")


# -- shapes and types -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["head.weight", "pos_embed", "patch_embed.proj.weight", "cls_token", "dist_token", "reg_token"]
)
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("form", ["ours", "plain", "published"])
def test_tensors_of_a_wrong_rank(tmp_path: Path, name: str, shape: tuple[int, ...], form: str) -> None:
    weights = {"head.weight": torch.ones(5, 4), "pos_embed": torch.ones(1, 17, 4)}
    weights[name] = torch.ones(shape)
    path = tmp_path / "x"
    if form == "ours":
        write_checkpoint(path, weights, CONFIG, {})
    elif form == "plain":
        save_file(weights, path)
    else:
        args = argparse.Namespace(model="deit_tiny_patch16_224")
        torch.save({"model": weights, "args": args}, path)
    assert f"has {name} of shape {list(shape)}" in refusal(read_checkpoint, path)


def test_a_number_of_blocks_that_is_no_number(tmp_path: Path) -> None:
    save_file({**WEIGHTS, f"blocks.{'9' * 5000}.x": torch.ones(1)}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x", "--x").config is None


# -- .pth files -------------------------------------------------------------------------------


@pytest.fixture
def little_memory() -> Any:
    """Two gigabytes more than now, so that whoever takes what a small file claims gets another error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def rezipped(path: Path, compression: int, **extra: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries |= {f"{path.stem}/{name}": content for name, content in extra.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.usefixtures("little_memory")
def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": WEIGHTS}, path)
    rezipped(path, zipfile.ZIP_DEFLATED, bomb=bytes(100_000_000))
    assert path.stat().st_size < 1_000_000
    assert "compressed" in refusal(read_checkpoint, path)


def test_entries_that_claim_more_than_the_file_or_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": WEIGHTS}, path)
    whole = path.read_bytes()
    assert torch.equal(read_checkpoint(path, "--x").state_dict["head.weight"], WEIGHTS["head.weight"])
    path.write_bytes(whole + b"behind")
    assert "not a whole PyTorch" in refusal(read_checkpoint, path)
    at = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)
    path.write_bytes(whole[: at + 20] + struct.pack("<II", 1 << 30, 1 << 30) + whole[at + 28 :])
    assert "not a whole PyTorch" in refusal(read_checkpoint, path)
    path.write_bytes(whole)
    rezipped(path, zipfile.ZIP_STORED, **{"DATA.pkl": b"\x80\x02}."})
    assert "one name" in refusal(read_checkpoint, path)


class Calls:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def doubled(function: Any, value: Any, times: int) -> Any:
    for _ in range(times):
        value = Calls(function, *value) if isinstance(value, tuple) else Calls(function, value, value)
    return value


def nested(depth: int) -> Any:
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    return value


HUGE = {
    "bytearray": lambda: Calls(bytearray, 10**11),
    "a tensor class": lambda: Calls(torch.FloatTensor, 10**10),
    "a numpy dtype": lambda: Calls(np.dtype("V10").type, b""),
    "a wide dtype": lambda: Calls(np.dtype, "V10000000000", False, True),
    "paths that double": lambda: doubled(pathlib.PurePosixPath, "a" * 1000, 40),
    "a codec that doubles": lambda: Calls(__import__("_codecs").encode, "a" * 100, "hex"),
    "a sparse tensor": lambda: torch.ones(3, 3).to_sparse(),
    "a meta tensor": lambda: torch.ones(3, device="meta"),
    "a key too deep": lambda: collections.Counter([nested(100)]),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", HUGE)
def test_a_small_pickle_that_asks_for_much(tmp_path: Path, what: str, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": WEIGHTS, "args": {"x": HUGE[what]()}}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(read_checkpoint, path)
    assert "so it is refused" in message or "not a whole PyTorch" in message


def claiming(path: Path, size: tuple[int, ...], stride: tuple[int, ...], zipped: bool) -> None:
    """A file whose tensor claims another shape than is stored of it."""

    class Claim:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.ones(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, collections.OrderedDict())

    torch.save({"model": {"head.weight": Claim()}}, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("size", "stride", "words"),
    [
        ((10**6, 10**6), (10**6, 1), "larger than what is stored"),
        ((3, 2), (2, 1), "larger than what is stored"),
        ((10**6, 4), (0, 1), "repeats itself"),
        ((2, 2), (-1, 1), "no shape"),
        ((2, 2), (2, 1), None),
    ],
)
def test_tensors_larger_than_what_is_stored(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], words: str | None, zipped: bool
) -> None:
    path = tmp_path / "x.pth"
    claiming(path, size, stride, zipped)
    if words is None:
        assert torch.equal(read_checkpoint(path, "--x").state_dict["head.weight"], torch.ones(2, 2))
    else:
        assert words in refusal(read_checkpoint, path)


@pytest.mark.usefixtures("little_memory")
def test_one_tensor_under_many_names(tmp_path: Path) -> None:
    value = torch.ones(100)
    torch.save({f"blocks.{i}.x": value for i in range(1000)}, tmp_path / "x.pth")
    assert "many names" in refusal(read_checkpoint, tmp_path / "x.pth")
    torch.save({"head.weight": torch.ones(2, 3), "a": value, "b": value}, tmp_path / "tied.pth")
    assert len(read_checkpoint(tmp_path / "tied.pth", "--x").state_dict) == 3


def test_options_that_are_endless(tmp_path: Path) -> None:
    wide: Any = 1
    for _ in range(40):
        wide = [wide, wide]
    ring: list[Any] = []
    ring.append(ring)
    for args in (wide, ring, nested(200), 1 << 2_000):
        torch.save({"model": WEIGHTS, "args": {"x": args}}, tmp_path / "x.pth")
        assert "args" in refusal(read_checkpoint, tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"(" * 100_000,
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02" + b"]" * 1000,
        b"\x80\x02r\xff\xff\xff\x7f",
    ],
)
def test_pickles_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    refusal(read_checkpoint, tmp_path / "x.pth")


def test_dangerous_arguments_in_published_args(tmp_path: Path) -> None:
    weights = {"pos_embed": torch.ones(1, 16, 4), "patch_embed.proj.weight": torch.ones(4, 3, 8, 8)}
    args = argparse.Namespace(model="deit_tiny_patch16_224", model_kwargs={"checkpoint_path": "/etc/passwd"})
    torch.save({"model": weights, "args": args}, tmp_path / "x.pth")
    assert "checkpoint_path is refused" in refusal(read_checkpoint, tmp_path / "x.pth")


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, 3, ["x"]])
def test_a_mask_path_that_no_file_can_have(tmp_path: Path, path: Any) -> None:
    from vitcod_cli.artifacts.published import mask_beside

    assert mask_beside(tmp_path / "x.pth", path) is None


# -- .npy files -------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    return (
        b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data
    )


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 200000, 200000)}", bytes(100)),
        npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1, 1, 200000, 200000)}", bytes(100)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000000, 1)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 1, 1)}"),
        npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1, 1, 1000000, 1000000)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}" + " " * 1_000_000, version=(2, 0)),
        npy("(" * 9000),
        npy("-" * 9000 + "1"),
        npy("{'descr': " + "[" * 4000 + "]" * 4000 + "}"),
    ],
    ids=range(9),
)
def test_arrays_that_claim_too_much(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    for read in (read_attention_map, read_mask):
        refusal(read, tmp_path / "x.npy")


# -- what is no file, and files of other kinds ------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "empty", "proc", "missing", "below a file"])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_no_file_is_not_opened(
    tmp_path: Path, kind: str, through_a_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = {"device": Path("/dev/zero"), "proc": Path("/proc/self/mountinfo")}.get(kind, tmp_path / "x")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "below a file":
        path.touch()
        path /= "y"
    if through_a_link:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("it was opened"))
    for read in (checked_path, read_checkpoint, read_mask, read_attention_map):
        refusal(read, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n\n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"BZh91AY", "bzip2"),
        (b"\x89PNG\r\n", "an image"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.npy"])
def test_other_files_are_named(tmp_path: Path, content: bytes, words: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (read_checkpoint, read_mask, read_attention_map):
        assert words in refusal(read, tmp_path / name)


@pytest.mark.parametrize("name", [b"x\xff", b"x\ny", b"x\x1b[31m", "Ü ✓".encode()])
def test_names_of_any_bytes(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_checkpoint(path, WEIGHTS, CONFIG, {})
    assert torch.equal(read_checkpoint(path, "--x").state_dict["head.weight"], WEIGHTS["head.weight"])
    save_file(WEIGHTS, tmp_path / "plain")
    os.replace(tmp_path / "plain", path)
    assert read_checkpoint(path, "--x").layout == "timm"
    write_mask(path, Mask(ATTENTION > 0))
    assert read_mask(path).keep.all()
    torch.save({"model": WEIGHTS}, tmp_path / "x.pth")
    os.replace(tmp_path / "x.pth", path)
    assert read_checkpoint(path, "--x").layout == "published"
    np.save(tmp_path / "x.npy", ATTENTION)
    os.replace(tmp_path / "x.npy", path)
    assert np.array_equal(read_attention_map(path).attention, ATTENTION)


def test_a_pickle_under_the_name_of_a_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps({"model": 1}))
    assert "not a whole safetensors" in refusal(read_checkpoint, tmp_path / "x.safetensors")


def test_a_flipped_bit_in_a_pickled_checkpoint_is_noticed(tmp_path: Path) -> None:
    """The archive has a checksum of every tensor; torch.load looks at none of them."""
    path = tmp_path / "model.pth"
    torch.save({"model": {"head.weight": torch.full((5, 400), 1.5)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((9,), 1.5).numpy().tobytes()) + 13] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(VitcodError, match=r"model\.pth is not a whole PyTorch checkpoint .* is damaged"):
        read_checkpoint(path, "--checkpoint")


def test_a_pickled_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"head.weight": torch.ones(5, 4)}}, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_checkpoint(tmp_path / "model.pth", "--checkpoint").state_dict["head.weight"].sum() == 20


def test_an_array_that_its_header_does_not_describe(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.ones((1, 2, 3, 3), dtype=bool))
    content = path.read_bytes()
    path.write_bytes(content + b"\1")
    with pytest.raises(VitcodError, match="bytes behind its numbers"):
        read_mask(path)
    path.write_bytes(content[:-1] + b"\x37")
    with pytest.raises(VitcodError, match="neither true nor false"):
        read_mask(path)
    path.write_bytes(content)
    assert not read_mask(path).keep.any()
