"""How an image folder is laid out: what is beside the class folders, and what is there instead of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fuzz.case import Attempt, Bench, Make
from fuzz.pictures import _counted, _data, _words


def _split_in_place(bench: Bench, val: Path) -> None:
    """The folder of a split itself is named."""
    os.rename(val, bench.folder / "val")
    shutil.rmtree(bench.folder / "data")
    os.rename(bench.folder / "val", bench.folder / "data")


def _refused(bench: Bench) -> Attempt:
    return Attempt(_words(bench))


def _layout(bench: Bench) -> Attempt:
    val = _data(bench)
    image = val / "class0/00.png"
    match bench.number % 22:
        case 0:
            shutil.copyfile(image, val / "loose.png")
        case 1:
            (val / "class9").mkdir()
        case 2:
            shutil.rmtree(val)
        case 3:
            shutil.rmtree(val)
            val.mkdir()
        case 4:
            shutil.rmtree(val)
            val.write_bytes(b"")
        case 5:
            shutil.copytree(val / "class0", val / "class5")
        case 6:
            _split_in_place(bench, val)
        case 7:
            (val / "class3").chmod(0)
        case 8:
            val.chmod(0)
        case 9:
            shutil.rmtree(val / "class2")
            (val / "class2").symlink_to(bench.any(["class2", "nowhere"]))
            return Attempt(_words(bench), lambda done: None)
        case 10 | 11:
            shutil.rmtree(val / "class1")
            (val / "class1").symlink_to("/dev")
        case 12:  # one class of the training images is not among the validation images
            shutil.rmtree(val / "class2")
            return Attempt(_words(bench), lambda done: None)
        case _:
            return _fine(bench, val, image)
    return _refused(bench)


def _fine(bench: Bench, val: Path, image: Path) -> Attempt:
    """What lies beside the images and changes nothing."""
    refusable = False
    match bench.number % 22:
        case 13:
            (val / "class0/Thumbs.db").write_bytes(b"x")
            (val / ".DS_Store").write_bytes(b"x")
            (val / "README.txt").write_text("read me")
        case 14:
            (val / "class0/._00.png").write_bytes(b"\0\5\x16\7")
        case 15:
            os.rename(image, image.with_suffix(".PNG"))
        case 16:
            (val / "class0/notes.npy").write_bytes(b"x")
            (val / "class0/x.jpg.part").write_bytes(b"x")
        case 17:
            (val / ".cache").mkdir()
        case 18:
            os.rename(val / "class4", bench.folder / "elsewhere")
            (val / "class4").symlink_to(bench.folder / "elsewhere")
        case 19:
            # Two links that lead up: whoever follows them all walks for ever.
            (val / "class0/up").symlink_to("..")
            (val / "class1/up").symlink_to("..")
            refusable = True
        case 20:
            (val / "class0/zero").symlink_to("/dev/zero")
            os.mkfifo(val / "class0/pipe")
        case _:
            shutil.rmtree(bench.folder / "data/train")
    return _counted(bench, refusable)


LAYOUTS: dict[str, Make] = {"layout": _layout}
