"""Image files made by hand: of every mode, with odd things inside, larger than they look, and none at all."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from fuzz.case import Bench


def image(bench: Bench, mode: str = "RGB", size: tuple[int, int] = (40, 36)) -> Image.Image:
    noise = bench.random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert("RGB").convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def modes(bench: Bench) -> bytes:
    modes = [
        "1",
        "L",
        "LA",
        "P",
        "RGBA",
        "I;16",
        "I",
        "CMYK",
        "YCbCr",
        "LAB",
        "F",
        "RGBX",
        "transparent",
        "JPEG L",
        "alpha",
    ]
    match bench.turn(modes):
        case "transparent":
            return encoded(image(bench, "P"), "PNG", transparency=3)
        case "alpha":
            return encoded(image(bench, "RGBA"), "WEBP")
        case "I;16" as mode:
            return encoded(image(bench, "L").convert("I").convert(mode), "PNG")
        case "JPEG L":
            return encoded(image(bench, "L"), "JPEG")
        case "CMYK" | "YCbCr" as mode:
            return encoded(image(bench, mode), "JPEG")
        case "LAB" | "F" | "I" | "RGBX" as mode:
            return encoded(image(bench, mode), "TIFF")
        case mode:
            return encoded(image(bench, mode), "PNG")


def frames(bench: Bench) -> bytes:
    form = bench.turn(["GIF", "PNG", "WEBP", "TIFF"])
    return encoded(image(bench), form, save_all=True, append_images=[image(bench) for _ in range(3)])


def sizes(bench: Bench) -> bytes:
    sizes = [(1, 1), (1, 500), (500, 1), (2, 3), (32, 32), (31, 33), (3000, 2), (1, 64), (700, 700)]
    return encoded(image(bench, "RGB", bench.turn(sizes)), bench.any(["PNG", "JPEG", "BMP"]))


def floats(bench: Bench) -> bytes:
    values = bench.random.normal(size=(36, 40)).astype(np.float32)
    values[3, 4] = bench.turn([np.nan, np.inf, -np.inf, 1e38])
    return encoded(Image.fromarray(values), "TIFF")


def png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header says this, whatever its rows are (raw, before compression)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge(bench: Bench) -> bytes:
    """Small files that claim, or are, enormous images."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))
    makes: list[Callable[[], bytes]] = [
        lambda: png(100_000, 100_000),
        lambda: png(2**31 - 1, 2**31 - 1),
        lambda: png(1, 5_000_000, bytes(2 * 5_000_000), colour=0),
        lambda: png(5_000_000, 1, bytes(5_000_001), colour=0),
        lambda: png(13_000, 13_000, bytes(13_000 * 1626), depth=1, colour=0),
        lambda: png(0, 10),
        lambda: (
            b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;"
        ),
        lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        lambda: b"P6\n99999 99999\n255\n",
        lambda: b"P6\n" + b"9" * 100_000 + b" 1\n255\n",
        lambda: png(40, 36, bytes(36 * 121), extra=text * 3),
        lambda: b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + b"\0\1\4\0\xff\xff\xff\xff\xff\xff\xff\xff" * 2000,
        lambda: b"\0\0\1\0\xff\xff" + b"\0" * 16 * 1000,
        lambda: png(40, 36, bytes(36 * 121), extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
    ]
    return bench.turn(makes)()


def odd_content(bench: Bench) -> bytes:
    """Valid images with odd things beside their pixels."""
    exif = Image.Exif()
    exif[0x0112] = bench.any([0, 3, 6, 9, 255])
    exif[0x010E] = "\x1b[31mred\n"
    match bench.number % 4:
        case 0:
            return encoded(image(bench), "JPEG", exif=exif)
        case 1:
            return encoded(image(bench), "PNG", icc_profile=b"\xff" * int(bench.any([1, 200_000])))
        case 2:
            return encoded(image(bench), "JPEG", comment=b"\x1b[2J" * 1000)
        case _:
            return encoded(image(bench), "JPEG", exif=b"Exif\0\0" + bench.random.bytes(300))


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 36\n%%EndComments\n(pwned) (w) file\nshowpage\n%%EOF\n"
FOREIGN = (
    _EPS,
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"<html>",
    b"PK\3\4",
    b"%PDF-1.4\n",
    b"\x93NUMPY",
    b"text",
    b"",
    b"\xd7\xcd\xc6\x9a\0\0" + b"\1" * 100,
    b"#define x_width 40\n#define x_height 36\nstatic char x_bits[] = {0};",
    b"8BPS\0\1" + b"\0" * 6 + b"\0\3\0\0\0$\0\0\0(\0\10\0\3" + b"\0" * 40,
)
