"""Readers of one file: what every kind of damage does to it, and how the commands that read it are asked."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from fuzz.case import Attempt, Bench, Check, Make
from fuzz.damage import BYTES, Damage


class Use(NamedTuple):
    """A command that reads the file: ``{}`` in a word is its path.

    Attributes:
        check: of the command's success, given what the file holds; None where it has to refuse that.
        outputs: names of what a success writes.
        generous: the command takes files of several kinds.
    """

    words: tuple[str, ...]
    check: Callable[[Bench, Any], Check | None]
    outputs: tuple[str, ...] = ()
    generous: bool = False


class Made(NamedTuple):
    """A file that was made by hand.

    Attributes:
        content: its bytes.
        holds: what it holds, for :attr:`Use.check`; None where it has to be refused.
        refusable: whether refusing is right too.
    """

    content: bytes
    holds: Any = None
    refusable: bool = True


@dataclass
class FileReader:
    """A reader of one file.

    Attributes:
        name: of the reader.
        asset: the whole file.
        parse: what damaged bytes still hold, by a reader of the tests' own; None where they hold nothing that
            may be read. Of files that carry a checksum: what the undamaged file holds.
        uses: commands.
        by_hand: mutations that know the format.
        foreign: assets that are something else.
    """

    name: str
    asset: str
    parse: Callable[[Bench, bytes], Any]
    uses: Sequence[Use]
    by_hand: dict[str, Callable[[Bench], Made]] = field(default_factory=dict)
    foreign: Sequence[str] = ()

    def mutations(self) -> dict[str, Make]:
        """All mutations of this reader by name."""
        makes: dict[str, Make] = {"whole": self._whole, "names": self._names, "special": self._special}
        makes |= {kind: partial(self._damaged, damage=damage) for kind, damage in BYTES.items()}
        makes |= {kind: partial(self._made, make=make) for kind, make in self.by_hand.items()}
        if self.foreign:
            makes["foreign"] = self._foreign
        return makes

    def attempt(
        self, bench: Bench, path: str, holds: Any, refusable: bool = True, uses: Sequence[Use] | None = None
    ) -> Attempt:
        """One of the uses on ``path``, which holds ``holds`` (None: to be refused)."""
        use = bench.any(uses or self.uses)
        words = [word.format(path, assets=bench.assets) if "{" in word else word for word in use.words]
        check = None if holds is None else use.check(bench, holds)
        return Attempt(words, check, refusable or check is None, use.outputs)

    def _file(self, bench: Bench, content: bytes) -> str:
        name = self.asset.replace("/", "-")
        (bench.folder / name).write_bytes(content)
        return name

    def _whole(self, bench: Bench) -> Attempt:
        content = bench.asset(self.asset)
        return self.attempt(bench, self._file(bench, content), self.parse(bench, content), refusable=False)

    def _damaged(self, bench: Bench, damage: Damage) -> Attempt:
        whole = bench.asset(self.asset)
        content = damage(whole, bench.random)
        return self.attempt(bench, self._file(bench, content), self.parse(bench, content), content != whole)

    def _made(self, bench: Bench, make: Callable[[Bench], Made]) -> Attempt:
        made = make(bench)
        return self.attempt(bench, self._file(bench, made.content), made.holds, made.refusable)

    def _foreign(self, bench: Bench) -> Attempt:
        particular = [use for use in self.uses if not use.generous]
        return self.attempt(bench, self._file(bench, bench.asset(bench.turn(self.foreign))), None, uses=particular)

    def _names(self, bench: Bench) -> Attempt:
        """An odd name, of the file or a folder above it; or one that isn't there."""
        stem, suffix = bench.any(ODD_NAMES), self.asset[self.asset.rindex(".") :].encode()
        content, name = bench.asset(self.asset), stem[: 255 - len(suffix)] + suffix
        if bench.random.random() < 0.3:
            os.mkdir(os.path.join(os.fsencode(bench.folder), stem))
            name = stem + b"/file" + suffix
        path, there = os.path.join(os.fsencode(bench.folder), name), bench.random.random() < 0.7
        if there:
            with open(path, "wb") as file:
                file.write(content)
        shown = name if bench.random.random() < 0.7 else path
        holds = self.parse(bench, content) if there else None
        return self.attempt(bench, os.fsdecode(shown), holds, refusable=not is_utf8(name))

    def _special(self, bench: Bench) -> Attempt:
        """A path behind which there is no file, or none that may be read; links to the whole file are fine."""
        kind = bench.turn(SPECIAL)
        name = self.asset.replace("/", "-")
        holds = None
        if kind == "link":
            os.symlink(bench.assets / self.asset, bench.folder / name)
            holds = self.parse(bench, bench.asset(self.asset))
        else:
            name = make_special(bench, name, kind)
        return self.attempt(bench, name, holds, refusable=False)


def is_utf8(name: bytes) -> bool:
    """Whether a name is text; safetensors, JSON and YAML take no other, so that one sentence may refuse it."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


SPECIAL = (
    "fifo",
    "zero",
    "full",
    "null",
    "folder",
    "dangling",
    "loop",
    "socket",
    "empty",
    "unreadable",
    "link",
    "far",
    "stdin",
    "memory",
    "long",
    "through a file",
    "nul",
)


def make_special(bench: Bench, name: str, kind: str) -> str:
    """Put something special under ``name``; returns the path to name it by."""
    path = bench.folder / name
    devices = {
        "zero": "/dev/zero",
        "full": "/dev/full",
        "null": "/dev/null",
        "memory": "/proc/self/mem",
        "dangling": "nowhere",
        "loop": name,
        "far": "/dev/fd/0",
    }
    if kind in devices:
        os.symlink(devices[kind], path)
        return name if kind in ("dangling", "loop", "far") or bench.random.random() < 0.5 else devices[kind]
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(name)  # of the working directory: a whole path may be too long
        case "empty":
            path.touch()
        case "unreadable":
            shutil.copyfile(bench.assets / "map.npy", path)
            path.chmod(0)
        case "through a file":
            path.write_bytes(b"x")
            return f"{name}/{name}"
    return {"stdin": "/dev/stdin", "long": "x" * 5000, "nul": f"a\0{name}"}.get(kind, name)


ODD_NAMES = (
    b"new\nline",
    b"\x1b[31mred\x1b[0m",
    b"bell\x07\x08\r",
    b"\xff\xfe\xed\xa0\x80",
    b"x" * 255,
    "ü".encode() * 127,
    b"-dash",
    b"--help",
    b" spaces  inside ",
    "日本語 \u202egpj".encode(),
    b"$(touch pwned) `touch pwned` ;'\"",
    b"~",
    b"%s{0}{name}",
    b"[a-z]*?",
    b"a=b,c:d|e",
    "\x85\u2028".encode(),
    b"https:",
    b"@file",
    b"\\x00",
    b"[red]markup",
)
