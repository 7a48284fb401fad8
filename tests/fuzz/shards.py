"""The shards of a stream of images (webdataset)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tars import member, packed

from fuzz.archives import EVAL, counted, members_of, odd_members
from fuzz.case import Attempt, Bench, Check, Done, Make
from fuzz.damage import BYTES
from fuzz.files import ODD_NAMES, make_special


def _shard_words(bench: Bench, split: str = "val-{0..1}.tar|10", folder: str = "data") -> list[str]:
    checkpoint = f"--checkpoint={bench.assets / 'dense.safetensors'}"
    return [*EVAL, checkpoint, "--dataset=wds/x", f"--data-path={folder}", f"--val-split={split}"]


def _shards(bench: Bench) -> Path:
    folder = bench.folder / "data"
    folder.mkdir()
    for shard in range(2):
        shutil.copyfile(bench.assets / f"val-{shard}.tar", folder / f"val-{shard}.tar")
    return folder


def _shard_check(bench: Bench, folder: Path) -> Check | None:
    """All ten images of both shards; None where one of them is lost, which must not pass in silence."""
    pictures = []
    for shard in range(2):
        files, whole = members_of((folder / f"val-{shard}.tar").read_bytes())
        keys = sorted({name.partition(".")[0] for name in files})
        for key in keys:
            label = files.get(f"{key}.cls", b"x")
            if not whole or f"{key}.png" not in files or not label.isdigit() or int(label) >= 5:
                return None
            pictures.append((files[f"{key}.png"], int(label)))
    return counted(bench, pictures) if len(pictures) == 10 else None


def _damaged_shard(kind: str) -> Make:
    def make(bench: Bench) -> Attempt:
        folder = _shards(bench)
        victim = folder / f"val-{bench.number % 2}.tar"
        victim.write_bytes(BYTES[kind](victim.read_bytes(), bench.random))
        check = _shard_check(bench, folder)
        # The images that are still whole may be read, if it is said that some are not.
        return Attempt(_shard_words(bench), check or warned)

    return make


def warned(done: Done) -> None:
    """Less was read than there should be, and that was said."""
    assert b"Warning: " in done.err, "images are missing, without a warning"


def _shard_whole(bench: Bench) -> Attempt:
    return Attempt(_shard_words(bench), _shard_check(bench, _shards(bench)), refusable=False)


def _shard_labels(bench: Bench) -> Attempt:
    """A label that is none of the model's."""
    folder = _shards(bench)
    wrong = [
        b"x",
        b"-1",
        b"5",
        b"99999999999",
        b"",
        b"1.0",
        b"\x1b[31m",
        b"0x1",
        b"9" * 5000,
        "\u0661".encode(),
        b"[1]",
        b"\xff",
    ]
    members = members_of((folder / "val-0.tar").read_bytes())[0]
    victim = bench.any([name for name in members if name.endswith(".cls")])
    members[victim] = bench.turn(wrong)
    (folder / "val-0.tar").write_bytes(packed([member(name, data) for name, data in members.items()]))
    return Attempt(_shard_words(bench), warned)


def _shard_members(bench: Bench) -> Attempt:
    folder, odd = _shards(bench), bench.turn(odd_members(bench))
    members = members_of((folder / "val-0.tar").read_bytes())[0]
    (folder / "val-0.tar").write_bytes(packed([odd, *(member(name, data) for name, data in members.items())]))
    return Attempt(_shard_words(bench), lambda done: None)


def _shard_info(bench: Bench) -> Attempt:
    """The description that timm looks for beside the shards: junk, and names that are commands."""
    folder = _shards(bench)
    entry = {"name": "val", "num_samples": 10, "filenames": ["val-0.tar", "val-1.tar"], "shard_lengths": [5, 5]}
    odd: list[Any] = [
        {**entry, "filenames": ["pipe:touch pwned #.tar"]},
        {**entry, "filenames": ["/dev/zero"]},
        {**entry, "num_samples": "x"},
        {**entry, "num_samples": 10**20},
        {**entry, "filenames": 3},
        [],
        None,
        "x",
        {**entry, "filenames": ["../../../../etc/passwd"]},
        {},
        {**entry, "shard_lengths": None},
        {**entry, "filenames": ["http://example.org/x.tar"]},
        {**entry, "num_samples": -5},
        {**entry, "num_samples": 3},
        {**entry, "name": "\x1b[31m"},
    ]
    text = json.dumps({"splits": {"validation": bench.turn(odd)}})
    if bench.number % 7 == 6:
        text = bench.any(
            ["[" * 100_000, "\x00", "{}", "null", '{"splits": []}', "splits: !!python/name:os.system"]
        )
    for name in ("_info.json", "info.json", "_info.yaml", "info.yaml"):
        (folder / name).write_text(text)
    return Attempt(_shard_words(bench, "validation"), lambda done: None)


def _shard_names(bench: Bench) -> Attempt:
    """Names of shards that are patterns, commands, counts that are none; and folders with odd names."""
    _shards(bench)
    if bench.number % 2:
        name = os.fsdecode(bench.any([odd for odd in ODD_NAMES if odd not in (b"a=b,c:d|e", b"%s{0}{name}")]))
        os.rename(bench.folder / "data", bench.folder / name)
        return Attempt(_shard_words(bench, folder=name), _whole_shards(bench))
    splits = [
        "pipe:touch pwned #.tar|10",
        "pipe:cat val-0.tar; touch pwned|10",
        "val-{0..999999999}.tar|10",
        "val-{0..1}.tar|x",
        "val-{0..1}.tar|-3",
        "val-{0..1}.tar|1e9",
        "val-0.tar|99999999999999999999",
        "nothing.tar|10",
        "../x.tar|1",
        ".tar",
        "{" * 5000 + ".tar",
        "{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar",
        "val-{1..0}.tar|5",
        "",
        "|",
        "val",
        "http://example.org/x.tar|1",
        "/dev/zero.tar",
        "file:val-0.tar|5",
        "\x1b[31m.tar",
        "val-0.tar::val-1.tar|10",
    ]
    return Attempt(_shard_words(bench, splits[bench.number // 2 % len(splits)]), lambda done: None)


def _whole_shards(bench: Bench) -> Check | None:
    return _shard_check(bench, bench.assets)


def _shard_special(bench: Bench) -> Attempt:
    folder = _shards(bench)
    (folder / "val-1.tar").unlink()
    kinds = ("fifo", "zero", "null", "folder", "dangling", "loop", "socket", "empty", "unreadable")
    kind = bench.turn(kinds)
    make_special(bench, "data/val-1.tar", kind)
    if not os.path.lexists(folder / "val-1.tar"):
        (folder / "val-1.tar").symlink_to("/dev/zero")
    return Attempt(_shard_words(bench), warned)


SHARDS: dict[str, Make] = {
    "whole": _shard_whole,
    **{kind: _damaged_shard(kind) for kind in BYTES},
    "dtype": _shard_labels,
    "metadata": lambda bench: _shard_info(bench) if bench.number % 2 else _shard_members(bench),
    "claims": _shard_info,
    "names": _shard_names,
    "special": _shard_special,
}
