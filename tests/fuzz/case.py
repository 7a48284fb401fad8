"""What a case is: its name, what it draws from, what it asks of the command line, and how that ended."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

REFUSED, READ = "refused", "read right"


class Case(NamedTuple):
    """One generated case; the seed and these three make it anew."""

    reader: str
    mutation: str
    number: int

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Case:
        """The inverse of ``str``."""
        reader, mutation, number = text.split("/")
        return cls(reader, mutation, int(number))


class Done(NamedTuple):
    """How a command ended: exit code (negative: the signal), what it said, where it ran."""

    code: int
    out: bytes
    err: bytes
    folder: Path


Check = Callable[[Done], None]
"""Raises AssertionError unless a command that succeeded gave the right result."""


@dataclass
class Bench:
    """What a case is made on.

    Attributes:
        folder: the command's working directory, empty at first.
        assets: whole files of every kind (``assets.py``); shared by all cases, never written to.
        random, number: of the case.
    """

    folder: Path
    assets: Path
    random: np.random.Generator
    number: int

    @classmethod
    def of(cls, case: Case, seed: int, folder: Path, assets: Path) -> Bench:
        """The bench of ``case``: its random numbers depend on nothing else."""
        key = zlib.crc32(f"{case.reader}/{case.mutation}".encode())
        return cls(folder, assets, np.random.default_rng([seed, key, case.number]), case.number)

    def turn(self, items: Sequence[T]) -> T:
        """One of ``items`` by the case's number: a few cases meet them all."""
        return items[self.number % len(items)]

    def any(self, items: Sequence[T]) -> T:
        """One of ``items`` by chance."""
        return items[int(self.random.integers(len(items)))]

    def asset(self, name: str) -> bytes:
        """The bytes of a whole file."""
        return (self.assets / name).read_bytes()


@dataclass
class Attempt:
    """A command line and what may come of it.

    Attributes:
        words: the arguments; bytes that are no UTF-8 as surrogates, as Python has them in ``sys.argv``.
        check: of a success; None where the command has to refuse.
        refusable: whether refusing is right too.
        outputs: what a success leaves: names of new files and folders in the working directory.
        file_limit: bytes that a file may grow to, as on a disk that is full; 0: no limit.
    """

    words: list[str]
    check: Check | None = None
    refusable: bool = True
    outputs: tuple[str, ...] = ()
    file_limit: int = 0


Make = Callable[[Bench], Attempt]


@dataclass
class Report:
    """What became of a case.

    Attributes:
        problem: what is wrong; None where it ended as it should.
        command, said: the command line, and the end of its stderr.
        seconds, megabytes: what it took; the memory beyond what the process had before.
        process: whether it ran as a process of its own.
    """

    case: str
    outcome: str = ""
    problem: str | None = None
    command: str = ""
    said: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    process: bool = False
