"""Options of ``vitcod env``."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitcod_cli.settings import ResultSettings, Settings


@dataclass(frozen=True, kw_only=True)
class EnvOptions(Settings, panel="Output"):
    """What a bug report should say of the machine."""

    result: ResultSettings = field(default_factory=ResultSettings)
