"""Where results go: odd names, places that take none, files that are there already, disks that are full."""

from __future__ import annotations

import os

from fuzz.case import Attempt, Bench, Check, Done, Make
from fuzz.checkpoints import DATA
from fuzz.files import ODD_NAMES, is_utf8, make_special

_COMMANDS = [
    (["gen-mask", "--attn-map={a}/map.npy", "--info-cut=0.9"], "--output={}", ".safetensors"),
    (["convert", "{a}/map.npy"], "--output={}", ".safetensors"),
    (["convert", "{a}/map.safetensors", "--to=reference"], "--output={}", ".npy"),
    (["convert", "{a}/sparse.safetensors", "--to=reference"], "--output={}", ".pth"),
    (["convert", "{a}/published.pth"], "--output={}", ".safetensors"),
    (
        ["dump-attn", "--checkpoint={a}/dense.safetensors", "--data-path={a}/images", "--workers=0"],
        "--output={}",
        ".safetensors",
    ),
    (["export", "--checkpoint={a}/dense.safetensors"], "--output={}", ".safetensors"),
    (["plot", "{a}/map.npy"], "--output-dir={}", ""),
    (["gen-mask", "--attn-map={a}/map.npy", "--info-cut=0.9"], "--output-dir={}", ""),
    (
        [
            "finetune-dense",
            "--init-from={a}/dense.safetensors",
            *(w.replace("assets", "a") for w in DATA),
            "--epochs=0",
        ],
        "--output-dir={}",
        "",
    ),
]


def _command(bench: Bench, name: str) -> tuple[list[str], str]:
    """A command that writes to ``name``, and the ending that its file has ("" for a folder)."""
    words, option, suffix = bench.any(_COMMANDS)
    return [*(word.format(a=bench.assets) for word in words), option.format("{}").replace("{}", name)], suffix


def _written(name: str) -> Check:
    def check(done: Done) -> None:
        path = os.path.join(os.fsencode(done.folder), os.fsencode(name))
        assert os.path.getsize(path) > 0, "nothing was written"
        if os.path.isdir(path):
            assert os.listdir(path), "nothing was written"

    return check


def _names(bench: Bench) -> Attempt:
    """Every name that the system takes is taken, and said so that a terminal can show it."""
    stem = bench.turn(ODD_NAMES)
    words, suffix = _command(bench, "NAME")
    name = os.fsdecode(stem[: 255 - len(suffix)] + suffix.encode())
    words[-1] = words[-1].replace("NAME", name)
    beside = os.fsdecode(os.fsencode(name)[: -len(suffix)]) + "_mask.npy" if suffix == ".pth" else name
    refusable = len(os.fsencode(beside)) > 255 or stem == b"https:" or not is_utf8(os.fsencode(name))
    return Attempt(words, _written(name), refusable, (name, beside, name.split("/")[0]))


def _special(bench: Bench) -> Attempt:
    kind = bench.turn(
        ("fifo", "full", "null", "loop", "socket", "through a file", "long", "nul", "unwritable", "file", "folder")
    )
    words, suffix = _command(bench, "NAME")
    name = f"out{suffix}"
    if kind == "unwritable":
        os.mkdir(bench.folder / "locked", 0o500)
        name = f"locked/{name}"
    elif kind in ("file", "folder"):  # the one where the other is wanted
        make_special(bench, name, "empty" if (kind == "file") == (suffix == "") else "folder")
        if suffix == "" and kind == "folder":
            os.rmdir(bench.folder / name)
            (bench.folder / name).write_bytes(b"x")
    else:
        name = make_special(bench, name, kind)
    words[-1] = words[-1].replace("NAME", name)
    # A link that leads to itself may be replaced by the file, and convert writes into a folder that is there.
    written = bool(suffix) and (kind == "loop" or (kind == "file" and words[0] == "convert"))
    return Attempt(words, _written(name) if written else None, outputs=(name, "out_mask.npy"))


def _there_already(bench: Bench) -> Attempt:
    """What is there is kept without ``--overwrite``, and replaced with it."""
    words, suffix = _command(bench, "NAME")
    name = f"out{suffix}"
    words[-1] = words[-1].replace("NAME", name)
    if suffix:
        (bench.folder / name).write_bytes(b"precious")
        overwrite = bench.number % 2 == 0
        return Attempt(
            [*words, *(["--overwrite"] if overwrite else [])],
            _replaced(name) if overwrite else None,
            not overwrite,
            (name, "out_mask.npy"),
        )
    (bench.folder / name).mkdir()
    for file in ("precious.txt", "overview.png", "config.yaml"):
        (bench.folder / name / file).write_bytes(b"precious")
    if words[0] == "gen-mask":
        return Attempt(words, lambda done: None, False, (name,))
    return Attempt(words)


def _replaced(name: str) -> Check:
    def check(done: Done) -> None:
        assert (done.folder / name).read_bytes() != b"precious", "it was not replaced"

    return check


def _full(bench: Bench) -> Attempt:
    """The disk is full after some kB; what was there stays as it was."""
    words, suffix = _command(bench, "NAME")
    words[-1] = words[-1].replace("NAME", f"out{suffix}")
    if suffix:
        (bench.folder / f"out{suffix}").write_bytes(b"precious")
        words.append("--overwrite")
    limit = int(bench.turn([1, 600, 1500]))
    return Attempt(words, file_limit=limit)


OUTPUTS: dict[str, Make] = {
    "names": _names,
    "special": _special,
    "there already": _there_already,
    "full disk": _full,
}
