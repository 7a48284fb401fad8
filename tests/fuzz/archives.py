"""Tar files of images: a reader of the tests' own, members made by hand, one tar of class folders."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from typing import Any

import torch
from PIL import Image
from tars import Member, member, packed

from fuzz.case import Attempt, Bench, Check, Done, Make
from fuzz.damage import BYTES
from fuzz.facts import evaluation, pixels, plain_model, says
from fuzz.files import ODD_NAMES, is_utf8, make_special
from fuzz.safetensors_files import strictly_parsed

EVAL = ("eval", "--workers=0", "--json")


def members_of(content: bytes) -> tuple[dict[str, bytes], bool]:
    """The regular files of a tar by name, and whether it was whole."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for info in tar:
                file = tar.extractfile(info) if info.isfile() else None
                if file is not None:
                    data = file.read()
                    if len(data) < info.size:
                        return files, False
                    files[info.name] = data
            # tarfile stops without a word at a header that is none; behind the last member there are zeros.
            return files, not content[tar.offset : tar.offset + 512].strip(b"\0")
    except Exception:  # whatever a damaged archive raises
        return files, False


def _picture(data: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception:
        return None


def counted(bench: Bench, pictures: list[tuple[bytes, int]]) -> Check:
    """These images with these labels were counted, and no others; where one can't be read, a warning says so."""

    def check(done: Done) -> None:
        read = [(_picture(data), label) for data, label in pictures]
        good = [(image, label) for image, label in read if image is not None]
        weights = strictly_parsed(bench.asset("timm.safetensors"))
        assert weights is not None
        with torch.no_grad():
            logits = plain_model(weights)(torch.stack([pixels(image) for image, _ in good]))
        says(evaluation(logits, [label for _, label in good]))(done)
        assert len(good) == len(read) or b"Warning: " in done.err, "images were left out without a warning"

    return check


# -- one tar of class folders -------------------------------------------------------------------


def _tar_words(bench: Bench, path: str) -> list[str]:
    return [*EVAL, f"--checkpoint={bench.assets / 'dense.safetensors'}", f"--data-path={path}"]


def _tar_check(bench: Bench, content: bytes) -> Check | None:
    """What a whole tar holds; one that is cut or whose headers are damaged has to be refused."""
    files, whole = members_of(content)
    if not whole or len(files) != 10:
        return None
    names = sorted({name.rpartition("/")[0] for name in files if name.endswith(".png")})
    pictures = [(files[n], names.index(n.rpartition("/")[0])) for n in sorted(files) if n.endswith(".png")]
    return counted(bench, pictures) if len(names) <= 5 and len(pictures) == 10 else None


def _tar(bench: Bench, content: bytes, refusable: bool = True) -> Attempt:
    (bench.folder / "val.tar").write_bytes(content)
    check = _tar_check(bench, content)
    return Attempt(_tar_words(bench, "val.tar"), check, refusable or check is None)


def _damaged_tar(kind: str) -> Make:
    return lambda bench: _tar(bench, BYTES[kind](bench.asset("val.tar"), bench.random))


def odd_members(bench: Bench) -> list[Member]:
    """Members that are no files, lead out of the archive, or claim too much."""
    picture = bench.asset("images/val/class0/00.png")
    return [
        member("class0/link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("class0/hard.png", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
        member("class0/fifo.png", type=tarfile.FIFOTYPE),
        member("class0/device.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("../pwned.png", picture),
        member("/pwned.png", picture),
        member("class0/\x1b[31m.png", picture),
        member("x" * 300 + ".png", picture),
        member("class0/inner.tar", b"not a tar"),
        member("class0/inner.tar", packed([member("a.png", picture)])),
        member("class0/text.png", b"no image"),
        member("class0/empty.png"),
        member("loose.png", picture),
        member("class0/folder.png", type=tarfile.DIRTYPE),
        member("class0/sparse.png", type=tarfile.GNUTYPE_SPARSE),
    ]


def _tar_members(bench: Bench) -> Attempt:
    """One odd member beside the ten images: refused, or left out; it is never read as what it is not."""
    odd = bench.turn(odd_members(bench))
    whole = [member(name, data) for name, data in members_of(bench.asset("val.tar"))[0].items()]
    (bench.folder / "val.tar").write_bytes(packed([odd, *whole]))
    return Attempt(_tar_words(bench, "val.tar"), lambda done: None)


class _Pwned:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def _tar_cache(bench: Bench) -> Attempt:
    """Beside a tar timm looks for what it once noted of it, as a pickle."""
    content = bench.asset("val.tar")
    for name in ("_val_tarinfos.pickle", "val_tarinfos.pickle", "_here_tarinfos.pickle"):
        (bench.folder / name).write_bytes(
            pickle.dumps(bench.any([_Pwned(), {"tartrees": []}, [], {"tartrees": [{}]}]))
        )
    return _tar(bench, content)


def _tar_special(bench: Bench) -> Attempt:
    kinds = (
        "fifo",
        "zero",
        "null",
        "folder",
        "dangling",
        "loop",
        "socket",
        "empty",
        "unreadable",
        "through a file",
    )
    return Attempt(_tar_words(bench, make_special(bench, "val.tar", bench.turn(kinds))))


def _tar_names(bench: Bench) -> Attempt:
    name = bench.turn(ODD_NAMES)[:250] + b".tar"
    with open(os.path.join(os.fsencode(bench.folder), name), "wb") as file:
        file.write(bench.asset("val.tar"))
    return Attempt(
        _tar_words(bench, os.fsdecode(name)), _tar_check(bench, bench.asset("val.tar")), not is_utf8(name)
    )


def _tar_foreign(bench: Bench) -> Attempt:
    assets = (
        "map.npy",
        "published.pth",
        "dense.safetensors",
        "config.yaml",
        "images/val/class0/00.png",
        "val-0.tar",
    )
    (bench.folder / "val.tar").write_bytes(bench.asset(bench.turn(assets)))
    return Attempt(_tar_words(bench, "val.tar"))


TAR: dict[str, Make] = {
    "whole": lambda bench: _tar(bench, bench.asset("val.tar"), refusable=False),
    **{kind: _damaged_tar(kind) for kind in BYTES},
    "metadata": lambda bench: _tar_cache(bench) if bench.number % 3 == 0 else _tar_members(bench),
    "special": _tar_special,
    "names": _tar_names,
    "foreign": _tar_foreign,
}
