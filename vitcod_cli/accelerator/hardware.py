"""The chip of an estimate: the paper's, or what a YAML file says of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vitcod_cli.artifacts.yaml_file import read_values
from vitcod_cli.errors import VitcodError, did_you_mean, shown
from vitcod_cli.settings import Settings, options_of, setting

FLAG = "--hardware"
_MOST = 1e15


def _part(name: str, default: float, help: str, *, minimum: float, maximum: float = _MOST) -> Any:
    return setting(default, help, flag=f"{FLAG}: {name}", minimum=minimum, maximum=maximum)


@dataclass(frozen=True, kw_only=True)
class Hardware(Settings):
    """An array of lines of multipliers, in groups, with buffers and a memory beside it.

    A line computes a product of ``macs_per_line`` channels each cycle. A group of lines works on one key at a
    time, each line on another query. The defaults are the chip of the paper (HPCA 2023, section VI) where it
    says something, and else a guess that ``vitcod.yaml`` beside this file explains.
    """

    lines: int = _part("lines", 64, "MAC lines", minimum=1, maximum=1_000_000)
    macs_per_line: int = _part("macs_per_line", 8, "MACs of a line", minimum=1, maximum=1_000_000)
    groups: int = _part("groups", 8, "groups that the lines are divided into", minimum=1, maximum=4096)
    sparse_efficiency: float = _part(
        "sparse_efficiency",
        1.0,
        "share of its time that sparse work computes something",
        minimum=1e-3,
        maximum=1.0,
    )
    clock: float = _part("clock", 500e6, "cycles a second", minimum=1.0)
    bandwidth: float = _part("bandwidth", 76.8e9, "bytes a second from and to DRAM", minimum=1.0)
    bits: int = _part("bits", 8, "bits of a value", minimum=1, maximum=64)
    query_buffer: int = _part("query_buffer", 53 * 1024, "bytes", minimum=1)
    score_buffer: int = _part("score_buffer", 108 * 1024, "bytes", minimum=0)
    softmax_rate: float = _part("softmax_rate", 64.0, "entries a cycle", minimum=1e-3)
    mac_energy: float = _part("mac_energy", 0.15, "pJ a MAC", minimum=0.0, maximum=1e6)
    sram_energy: float = _part("sram_energy", 0.8, "pJ a byte", minimum=0.0, maximum=1e6)
    dram_energy: float = _part("dram_energy", 120.0, "pJ a byte", minimum=0.0, maximum=1e6)
    static_power: float = _part("static_power", 0.04, "W", minimum=0.0, maximum=1e6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lines % self.groups:
            raise VitcodError(
                f"{FLAG}: {self.lines} lines can't be divided into {self.groups} groups; change lines or groups."
            )

    @property
    def macs(self) -> int:
        """Multiply-accumulates in a cycle."""
        return self.lines * self.macs_per_line

    @property
    def group_lines(self) -> int:
        """Lines of a group."""
        return self.lines // self.groups

    @property
    def bytes_per_cycle(self) -> float:
        """From and to DRAM."""
        return self.bandwidth / self.clock

    def with_texts(self, texts: Mapping[str, Any], subject: str = FLAG) -> Hardware:
        """A copy with values as a user writes them.

        Raises:
            VitcodError: naming ``subject``, and the key that is unknown or has no such value.
        """
        options = options_of(Hardware)
        values: dict[str, Any] = {}
        for name, text in texts.items():
            if name not in options:
                hint = did_you_mean(name, options, f"there are {', '.join(options)}.")
                raise VitcodError(f"{subject}: {shown(name)} is no part of the hardware; {hint}")
            kind = type(options[name].default)
            try:
                if isinstance(text, bool):  # a number to Python
                    raise ValueError
                values[name] = kind(text)
            except (ValueError, TypeError) as error:
                noun = "whole number" if kind is int else "number"
                raise VitcodError(f"{subject}: {name} {shown(text)} is not a {noun}; mend it.") from error
        try:
            return self.changed(**values)
        except VitcodError as error:  # says the flag alone
            raise VitcodError(f"{subject}{str(error).removeprefix(FLAG)}") from error


def default_yaml() -> str:
    """The default as a YAML file that explains itself."""
    return resources.files(__package__).joinpath("vitcod.yaml").read_text(encoding="utf-8")


def read_hardware(path: str | None) -> Hardware:
    """The hardware of a YAML file; what it leaves out is as in the default, which None is.

    Raises:
        VitcodError: if the file can't be read, names something twice or what there isn't, or a value is out of
            its range.
    """
    if path is None:
        return Hardware()
    texts: dict[str, Any] = {}
    for line, key, value in read_values(path, FLAG, skip="", example="lines: 64"):
        if key in texts:
            raise VitcodError(f"{FLAG} {path}: {shown(key)} is given twice (again in line {line}); give it once.")
        texts[key] = value
    return Hardware().with_texts(texts, f"{FLAG} {path}")
