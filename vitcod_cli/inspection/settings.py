"""Options of ``vitcod inspect``. Imports neither numpy nor torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitcod_cli.settings import ResultSettings, Settings, required, setting


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Settings, panel="Mask"):
    """Options of ``vitcod inspect``."""

    files: list[str] = required(
        "Checkpoints, attention maps and masks, ours, published or timm's.",
        "name a file.",
        positional=True,
        metavar="FILE...",
        flag="FILE",
    )
    threshold: str | None = setting(
        None,
        "Global tokens: keys that more than so many queries keep, or than such a share of them (0.25).",
        metavar="COUNT|SHARE",
        show_default="50 of 197, as published",
    )
    head_dim: int = setting(
        64,
        "Channels of a head, for the arithmetic of a mask that doesn't say its model.",
        minimum=1,
        maximum=65536,
    )
    result: ResultSettings = field(default_factory=ResultSettings)
