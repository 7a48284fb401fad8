"""The least that every head, or block, keeps of its entries under ``--allocate``. Imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, setting

Per = Literal["head", "block"]

_ROUNDING = 1e-9
"""1 - 0.9 is a little less than 0.1."""


@dataclass(frozen=True, kw_only=True)
class FloorSettings(Settings, panel="Mask"):
    """A floor under the density, the share of entries that are kept; the sparsity of all stays as asked for."""

    min_density: float | None = setting(
        None,
        "Of allocated masks: share of its entries that every head keeps at least, its own most important ones. "
        "The sparsity of the whole mask stays.",
        above=0,
        maximum=1,
        metavar="SHARE",
        show_default="no floor",
    )
    min_density_per: Per | None = setting(
        None,
        "What keeps --min-density: every head, or every block, whose heads may then differ.",
        show_default="head",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_density is None and self.min_density_per is not None:
            raise VitcodError("--min-density-per says what --min-density is a share of: give that too.")

    @property
    def per(self) -> Per:
        """What the floor is under."""
        return self.min_density_per or "head"

    @property
    def parameters(self) -> dict[str, Any]:
        """What a mask says of its floor; nothing without one."""
        if self.min_density is None:
            return {}
        return {"min_density": self.min_density, "min_density_per": self.per}

    def conflict(self, sparsity: float, flag: str = "--sparsity") -> str | None:
        """Why no mask of that sparsity can have this floor; None where one might."""
        if self.min_density is None or self.min_density <= 1 - sparsity + _ROUNDING:
            return None
        return (
            f"--min-density {self.min_density:g} keeps more than {flag} {sparsity:g} leaves, which is "
            f"{1 - sparsity:.4g} of the entries; lower one of them."
        )
