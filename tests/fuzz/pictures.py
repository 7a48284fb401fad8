"""Image folders: files that are no images or no files, and folders laid out in other ways."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from fuzz.case import Attempt, Bench, Done, Make
from fuzz.damage import BYTES
from fuzz.encoded import FOREIGN, encoded, floats, frames, huge, image, modes, odd_content, sizes
from fuzz.facts import evaluation, pixels, plain_model, says
from fuzz.files import ODD_NAMES
from fuzz.safetensors_files import strictly_parsed

WORDS = ["eval", "--data-path=data", "--workers=0", "--json"]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000")
READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is read; of the others Pillow knows many, some of them by programs that it starts."""

_SUFFIXES = (".png", ".jpg", ".jpeg")
_PIXELS = 4_000_000
"""Larger images are not decoded here: their cases say what is to come of them."""


def _words(bench: Bench) -> list[str]:
    return [*WORDS, f"--checkpoint={bench.assets / 'dense.safetensors'}"]


def _data(bench: Bench) -> Path:
    """A copy of the image folder; returns its validation images."""
    shutil.copytree(bench.assets / "images", bench.folder / "data")
    return bench.folder / "data" / "val"


def _readable(path: bytes) -> Image.Image | None:
    try:
        with Image.open(os.fsdecode(path), formats=READ) as image:
            if image.size[0] * image.size[1] > _PIXELS:
                return None
            return image.convert("RGB")
    except Exception:  # whatever a damaged image raises
        return None


def read_right(bench: Bench, done: Done) -> None:
    """Every image that Pillow reads was counted, under the rank of its class; each other one was warned of."""
    root, images, labels, missing = os.fsencode(done.folder / "data/val"), [], [], 0
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(b"."))
    for label, name in enumerate(names):
        for file in sorted(os.listdir(os.path.join(root, name))):
            path = os.path.join(root, name, file)
            if not os.fsdecode(file).lower().endswith(_SUFFIXES) or os.path.isdir(path):
                continue
            image = _readable(path) if os.path.isfile(path) and os.access(path, os.R_OK) else None
            missing += image is None
            if image is not None:
                images.append(pixels(image))
                labels.append(label)
    warnings = [line for line in done.err.split(b"\n") if line.startswith(b"Warning: Can't read")]
    assert len(warnings) == missing, f"{missing} unreadable images, {len(warnings)} warnings"
    weights = strictly_parsed(bench.asset("timm.safetensors"))
    assert weights is not None
    with torch.no_grad():
        logits = plain_model(weights)(torch.stack(images))
    says(evaluation(logits, labels))(done)


def _counted(bench: Bench, refusable: bool = True) -> Attempt:
    return Attempt(_words(bench), lambda done: read_right(bench, done), refusable)


def _victim(val: Path, bench: Bench) -> Path:
    return bench.any(sorted(val.glob("*/*")))


def _damaged(kind: str) -> Make:
    def make(bench: Bench) -> Attempt:
        victim = _victim(_data(bench), bench)
        content = encoded(image(bench), bench.turn(FORMATS))
        victim.write_bytes(BYTES[kind](content, bench.random))
        return _counted(bench, refusable=False)

    return make


def _with(content: Callable[[Bench], bytes], refusable: bool = False) -> Make:
    """One image is replaced by ``content``."""

    def make(bench: Bench) -> Attempt:
        _victim(_data(bench), bench).write_bytes(content(bench))
        return _counted(bench, refusable)

    return make


def _claims(bench: Bench) -> Attempt:
    """Refused, or one image left out with a warning; the other nine are read."""
    victim = _victim(_data(bench), bench)
    victim.write_bytes(huge(bench))

    def check(done: Done) -> None:
        if b"Warning: Can't read" in done.err:
            victim.write_bytes(b"")
            read_right(bench, done)

    return Attempt(_words(bench), check)


def _foreign(bench: Bench) -> Attempt:
    """What is no image at all, whatever Pillow makes of it: no program is started for it."""
    victim = _victim(_data(bench), bench)
    victim.write_bytes(bench.turn(FOREIGN))

    def check(done: Done) -> None:
        victim.write_bytes(b"")
        read_right(bench, done)

    return Attempt(_words(bench), check, refusable=False)


def _names(bench: Bench) -> Attempt:
    val = _data(bench)
    odd, victim = bench.turn(ODD_NAMES), os.fsencode(_victim(val, bench))
    if bench.random.random() < 0.5:
        os.rename(victim, os.path.join(os.path.dirname(victim), odd[:250] + b".png"))
        return _counted(bench, refusable=False)
    for split in ("train", "val"):
        folder = os.fsencode(bench.folder / "data" / split)
        os.rename(os.path.join(folder, b"class4"), os.path.join(folder, b"d" + odd[:250]))
    return _counted(bench, refusable=False)


def _special(bench: Bench) -> Attempt:
    """Something else under the name of an image: the others are read all the same."""
    val = _data(bench)
    victim, kind = (
        _victim(val, bench),
        bench.turn(
            ["fifo", "zero", "null", "dangling", "loop", "socket", "empty", "unreadable", "link", "folder", "self"]
        ),
    )
    content = victim.read_bytes()
    victim.unlink()
    links = {
        "zero": "/dev/zero",
        "null": "/dev/null",
        "dangling": "nowhere",
        "loop": victim.name,
        "self": "/proc/self/mem",
    }
    match kind:
        case "fifo":
            os.mkfifo(victim)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(victim.relative_to(bench.folder)))
        case "empty":
            victim.touch()
        case "unreadable":
            victim.write_bytes(content)
            victim.chmod(0)
        case "link":
            (bench.folder / "elsewhere").write_bytes(content)
            victim.symlink_to(bench.folder / "elsewhere")
        case "folder":
            victim.mkdir()
        case _:
            victim.symlink_to(links[kind])

    def check(done: Done) -> None:
        if kind == "unreadable":  # to this process, which may be root's
            victim.chmod(0o600)
            victim.write_bytes(b"")
        read_right(bench, done)

    return Attempt(_words(bench), check, refusable=kind == "folder")


PICTURES: dict[str, Make] = {
    "whole": lambda bench: (_data(bench), _counted(bench, refusable=False))[1],
    **{kind: _damaged(kind) for kind in BYTES},
    "dtype": _with(modes),
    "rank": _with(frames),
    "shape": _with(sizes),
    "nonfinite": _with(floats),
    "claims": _claims,
    "metadata": _with(odd_content),
    "foreign": _foreign,
    "names": _names,
    "special": _special,
}
