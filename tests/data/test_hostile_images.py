"""Files called .jpg that strangers made: each works, or is named as unreadable within bounded memory and time."""

from __future__ import annotations

import io
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import CPU, MEDIUM, SMALL, write_images
from PIL import EpsImagePlugin, Image

from vitcod_cli.data import decode as decoding
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.decode import UnreadableImageError, decode, load_image, without_ghostscript
from vitcod_cli.data.images import SourceImages
from vitcod_cli.data.loaders import eval_loader, train_loader
from vitcod_cli.data.samples import prepared
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

MIB = 1 << 20


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, rows: int = 0) -> bytes:
    """A grey PNG that says it has so many pixels; ``rows`` are there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * rows))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def evaluated(root: Path, content: bytes | Callable[[Path], object], name: str = "x.jpg") -> tuple[int, list[str]]:
    """Images that an evaluation of one good image and this one sees, and what it warns of."""
    folder = write_images(root, {"val/a": 1}) / "val" / "a"
    if callable(content):
        content(folder / name)
    else:
        (folder / name).write_bytes(content)
    reporter = SilentReporter()
    data = open_dataset(DataSettings(data_path=str(root)), "val", num_classes=None)
    loader = eval_loader(data, MEDIUM, batch_size=4, workers=0, device=CPU, reporter=reporter)
    return sum(len(targets) for _, targets in loader), reporter.warnings


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(x) (w) file\n%%EOF\n"
TIFF = encoded(Image.new("RGB", (9, 9)), "TIFF")
BROKEN = {
    "PNG bomb": (png(50_000, 50_000), "2500000000 pixels"),
    "PNG just too large": (png(9_460, 9_460), "9,460 x 9,460 pixels, more"),
    "JPEG that claims 65500 x 65500": (
        encoded(Image.new("L", (8, 8)), "JPEG").replace(b"\x00\x08\x00\x08\x01", b"\xff\xdc\xff\xdc\x01"),
        "4290250000 pixels",
    ),
    "GIF that claims 65535 x 65535": (
        b"GIF89a" + b"\xff\xff\xff\xff" + bytes(3) + b"\x2c" + bytes(20),
        "pixels|not an",
    ),
    "BMP that claims 2^31 x 2^31": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "pixels",
    ),
    "a strip of one column": (
        png(1, 60_000, rows=60_000),
        r"54 x 3,240,000 pixels when 1 x 60,000 are resized, more",
    ),
    "a strip of one row": (encoded(Image.new("L", (60_000, 1)), "JPEG"), "pixels when 60,000 x 1 are resized"),
    "EPS": (EPS, "not an image of JPEG, PNG, WEBP, GIF or BMP format"),
    "TIFF": (TIFF, "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not an image"),
    "PDF": (b"%PDF-1.4\n1 0 obj\n", "not an image"),
    "ICO": (encoded(Image.new("RGB", (16, 16)), "ICO"), "not an image"),
    "PSD": (b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(40), "not an image"),
    "text": (b"hello\n" * 100, "not an image"),
    "nothing": (b"", "not an image"),
    "zeros": (bytes(4096), "not an image"),
    "PNG without pixels": (png(9, 9), "truncated|broken|unrecognized|incomplete"),
    "PNG of no width": (png(0, 9), "not an image|division|tile"),
    "text bomb": (
        png(9, 9, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 * MIB), 9)), rows=9),
        "(?i)too large",
    ),
    "colour profile bomb": (png(9, 9, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200 * MIB))), rows=9), ""),
    "WebP that is cut": (encoded(Image.new("RGB", (64, 64)), "WEBP")[:40], "not an image|could not|decoder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_named_and_left_out_within_bounded_memory(tmp_path: Path, case: str) -> None:
    content, says = BROKEN[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen, warnings = evaluated(tmp_path, content)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 800, f"{grown:.0f} MiB"
    if says:
        assert seen == 1
        assert len(warnings) == 1
        assert re.search(says, warnings[0])
        assert "val/a/x.jpg (" in warnings[0]
        assert "\n" not in warnings[0]


RANDOM = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
FINE = {
    "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
    "16 bits": encoded(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)), "PNG"),
    "CMYK": encoded(RANDOM.convert("CMYK"), "JPEG"),
    "palette with transparency": encoded(RANDOM.convert("P"), "PNG", transparency=3),
    "transparent": encoded(RANDOM.convert("RGBA"), "PNG"),
    "grey with alpha": encoded(RANDOM.convert("LA"), "PNG"),
    "black and white": encoded(RANDOM.convert("1"), "PNG"),
    "PNG called JPEG": encoded(RANDOM, "PNG"),
    "WebP called JPEG": encoded(RANDOM, "WEBP"),
    "GIF called JPEG": encoded(RANDOM.convert("P"), "GIF"),
    "BMP called JPEG": encoded(RANDOM, "BMP"),
    "GIF of 3,000 frames": encoded(
        Image.new("P", (8, 8)),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (8, 8), i % 200) for i in range(3000)],
    ),
    "64 KiB of EXIF": encoded(RANDOM, "JPEG", exif=b"Exif\0\0" + bytes(65_000)),
    "a colour profile that is none": encoded(RANDOM, "JPEG", icc_profile=bytes(3 * MIB)),
    "a long comment": encoded(RANDOM, "JPEG", comment=bytes(60_000)),
    "200 to 1": encoded(Image.new("L", (2000, 10)), "JPEG"),
}


@pytest.mark.parametrize("case", FINE)
def test_odd_images_work(tmp_path: Path, case: str) -> None:
    assert evaluated(tmp_path, FINE[case]) == (2, [])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_pixels_are_pillows(tmp_path: Path, kind: str) -> None:
    """The bounds change no image: the same bytes as Pillow's own way of opening a path."""
    (tmp_path / "x.jpg").write_bytes(encoded(RANDOM.convert("P") if kind == "GIF" else RANDOM, kind))
    with Image.open(tmp_path / "x.jpg") as image:
        expected = image.convert("RGB").tobytes()
    assert prepared(load_image(tmp_path / "x.jpg"), MEDIUM).tobytes() == expected


def test_exif_rotations_are_not_applied(tmp_path: Path) -> None:
    """As in timm."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.jpg").write_bytes(encoded(RANDOM, "JPEG", exif=exif))
    assert load_image(tmp_path / "x.jpg").size == (50, 40)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have 108 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def make_huge(path: Path) -> None:
    """A file of 10 GiB that takes no room."""
    path.touch()
    os.truncate(path, 10 * 1024**3)


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "not a regular file"),
    "link to a pipe": (lambda path: (os.mkfifo(path.parent / "p"), path.symlink_to("p")), "not a regular file"),
    "socket": (make_socket, "not a regular file"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "link to a terminal": (lambda path: path.symlink_to("/dev/tty"), "not a regular file"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "No such file or directory"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "huge file": (make_huge, "10,737,418,240 bytes"),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, case: str) -> None:
    make, says = SPECIAL[case]
    seen, (warning,) = evaluated(tmp_path, make)
    assert seen == 1
    assert f"val/a/x.jpg ({says}" in warning.replace("Too many levels of ", "")


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the opening."""
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda path, real=os.stat: real(tmp_path / "file"))
    with pytest.raises(UnreadableImageError, match="not a regular file"):
        load_image(tmp_path / "pipe")


def test_images_that_go_and_change_while_running(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"val/a": 6})
    reporter = SilentReporter()
    data = open_dataset(DataSettings(data_path=str(root)), "val", num_classes=None)
    loader = eval_loader(data, SMALL, batch_size=2, workers=0, device=CPU, reporter=reporter)
    batches = iter(loader)
    next(batches)
    (root / "val/a/3.jpg").unlink()
    (root / "val/a/4.jpg").unlink()
    os.mkfifo(root / "val/a/4.jpg")
    os.truncate(root / "val/a/5.jpg", 300)
    assert sum(len(targets) for _, targets in batches) == 1
    assert len(reporter.warnings) == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_no_damage_gives_another_error(kind: str) -> None:
    """Bytes changed, cut and repeated anywhere: an image, or one kind of error."""
    generator = np.random.default_rng(0)
    whole = encoded(RANDOM.convert("P") if kind == "GIF" else RANDOM, kind)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.integers(1, 6)):
            damaged[generator.integers(0, min(len(damaged), 200))] = generator.integers(0, 256)
        if generator.random() < 0.3:
            damaged = damaged[: generator.integers(0, len(damaged))]
        try:
            prepared(decode(io.BytesIO(bytes(damaged))), MEDIUM)
        except UnreadableImageError as error:
            refused += "\n" not in str(error)
    assert refused > 20


def test_strips_are_refused_by_every_transform(tmp_path: Path) -> None:
    """In training as in evaluation, and for small inputs, which are resized whole."""
    root = write_images(tmp_path, {"train/a": 3})
    (root / "train/a/x.png").write_bytes(png(1, 3_000_000, rows=3_000_000))
    data = open_dataset(DataSettings(data_path=str(root)), "train", num_classes=None)
    for preprocess in (SMALL, MEDIUM):
        reporter = SilentReporter()
        data.bad_images.reasons.clear()
        loader = train_loader(
            data,
            preprocess,
            AugmentationSettings(),
            batch_size=4,
            workers=0,
            device=CPU,
            seed=0,
            reporter=reporter,
        )
        assert len(next(iter(loader))[1]) == 4
        assert "when 1 x 3,000,000 are resized" in reporter.warnings[0]


def test_ghostscript_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for files, nor where a library opens images by itself."""
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / "x.jpg").write_bytes(EPS)
    with pytest.raises(UnreadableImageError, match="not an image"):
        load_image(tmp_path / "x.jpg")

    class Library(list[int]):
        transform = None

        def __getitem__(self, index: object) -> tuple[Image.Image, int]:  # type: ignore[override]
            image = Image.open(tmp_path / "x.jpg")
            image.load()
            return image, 0

    with pytest.raises(UnreadableImageError, match="Ghostscript"):
        SourceImages(Library([1]), 1).load(0)
    assert EpsImagePlugin.gs_binary == "gs"
    with without_ghostscript():
        assert not EpsImagePlugin.has_ghostscript()


def test_sets_of_files_of_torchvision_read_by_the_same_rules(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = write_images(tmp_path, {"a": 1})
    data = SourceImages(ImageFolder(str(root)), 1)
    (root / "a" / "0.jpg").unlink()
    os.mkfifo(root / "a" / "0.jpg")
    with pytest.raises(UnreadableImageError, match="not a regular file"):
        data.load(0)


def test_labels_that_are_none(tmp_path: Path) -> None:
    class Odd(list[object]):
        transform = None

    for label, says in (([1, 2], "int"), ("cat", "invalid literal"), (float("inf"), "infinity")):
        with pytest.raises(UnreadableImageError, match=says):
            SourceImages(Odd([(RANDOM, label)]), 3).load(0)


@pytest.mark.parametrize(("label", "says"), [(3, "the label 3"), (-7, "the label -7"), (None, "no label")])
@pytest.mark.parametrize("training", [True, False])
def test_labels_beyond_the_classes_are_one_sentence(label: int | None, says: str, training: bool) -> None:
    """A GPU would answer by an assertion that no later call survives."""

    class Two(list[object]):
        transform = None

    data = SourceImages(Two([(RANDOM, 0), (RANDOM, label)]), 3)
    options = {"batch_size": 2, "workers": 0, "device": CPU}
    loader = (
        train_loader(data, SMALL, AugmentationSettings(no_aug=True), seed=0, **options)
        if training
        else eval_loader(data, SMALL, **options)
    )
    with pytest.raises(VitcodError, match=f"image 1 has {says}, but labels go from 0 to 2"):
        list(loader)


SCRIPT = """
import re, sys
from vitcod_cli.data.decode import load_image
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.samples import prepared
preprocess = Preprocess(input_size=(3, 224, 224))
transform = preprocess.eval_transform()
def peak():  # what getrusage says includes the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
print(tuple(transform(prepared(load_image(sys.argv[1]), preprocess)).shape))
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_largest_image_takes_the_memory_that_is_promised(tmp_path: Path, kind: str) -> None:
    side = int(decoding.MAX_PIXELS**0.5)
    options = {"JPEG": {"progressive": True}, "PNG": {"compress_level": 1}}.get(kind, {})
    Image.new("RGBA" if kind == "PNG" else "RGB", (side, side), (1, 2, 3)).save(
        tmp_path / "x.jpg", kind, **options
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "x.jpg")], capture_output=True, text=True, check=True
    )
    shape, grown = done.stdout.splitlines()
    assert shape == "(3, 224, 224)"
    assert int(grown) < 1600
