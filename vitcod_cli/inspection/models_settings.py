"""Options of ``vitcod models``. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitcod_cli.settings import ResultSettings, Settings, setting


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(Settings, panel="Output"):
    """Which names of timm's are looked at."""

    patterns: list[str] = setting(
        [],
        "Names, with * and ? for what is open, such as 'vit_*patch14*'; a part of a name does, too.",
        positional=True,
        metavar="[PATTERN...]",
        flag="PATTERN",
        show_default="all ViTs",
    )
    result: ResultSettings = field(default_factory=ResultSettings)
