"""Which mask to make of an attention map: the options of ``gen-mask``. Imports no numpy either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Settings, flag_of, setting

Method = Literal["info", "ratio", "std", "random"]

PANEL = "Mask"
DEFAULT_SPARSITY = 0.9

# The options that mean something to some methods only; elsewhere they are refused, not ignored.
_METHODS_OF = {
    "sparsity": ("info",),
    "info_cut": ("info",),
    "ratio": ("ratio", "random"),
    "std_coef": ("std",),
}


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Settings):
    """How entries of the attention map are chosen; see :mod:`vitcod_cli.masks.methods`."""

    method: Method = setting(
        "info",
        "info (the paper's): the keys of each row that hold most of its attention; ratio: the same number of keys "
        "in each row; std: keys above the row's mean + coefficient * std; random.",
        panel=PANEL,
    )
    sparsity: float | None = setting(
        None,
        "info: share of entries to prune; finds the --info-cut that gives it.",
        panel=PANEL,
        minimum=0,
        maximum=1,
        show_default=str(DEFAULT_SPARSITY),
    )
    allocate: bool = setting(
        False,
        "Spend the --sparsity where it does the least damage, over all blocks, heads and rows together, instead "
        "of the same info cut everywhere; needs a map from dump-attn --importance-images.",
        panel=PANEL,
    )
    info_cut: float | None = setting(
        None,
        "info: share of each row's attention to keep, instead of --sparsity.",
        panel=PANEL,
        minimum=0,
        maximum=1,
        show_default=False,
    )
    ratio: float | None = setting(
        None,
        "ratio, random: share of entries to prune, before prefix tokens are protected.",
        panel=PANEL,
        minimum=0,
        maximum=1,
        show_default="0.9",
    )
    std_coef: float | None = setting(
        None,
        "std: how many standard deviations above the mean of its row a key must be.",
        panel=PANEL,
        minimum=-1e6,
        maximum=1e6,
        show_default="0.9",
    )
    seed: int = setting(0, "random: seed of the draw.", panel=PANEL, minimum=0)
    num_prefix_tokens: int | None = setting(
        None,
        "Tokens before the patches (class, distillation, registers).",
        panel=PANEL,
        minimum=0,
        show_default="what the map says; 1 for a published .npy",
    )
    protect_prefix: bool | None = setting(
        None,
        "Keep the rows and columns of prefix tokens whole.",
        flag="--protect-prefix/--no-protect-prefix",
        panel=PANEL,
        show_default="protected, but for std as published",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, methods in _METHODS_OF.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise VitcodError(
                    f"{flag_of(name)} goes with --method {' or '.join(methods)}, not with {self.method}"
                    f"{'; say --ratio' if name == 'sparsity' and self.method in ('ratio', 'random') else ''}."
                )
        if self.allocate and (self.method != "info" or self.info_cut is not None):
            other = "--info-cut" if self.method == "info" else f"--method {self.method}"
            raise VitcodError(
                f"--allocate spends a --sparsity and makes no use of {other}; leave one of them out."
            )
        if self.allocate and self.protect_prefix is False:
            raise VitcodError("--allocate keeps the prefix tokens whole; leave --no-protect-prefix out.")
        if self.sparsity is not None and self.info_cut is not None:
            raise VitcodError("--sparsity and --info-cut exclude each other: --sparsity finds the cut; give one.")

    @property
    def name(self) -> str:
        """Of the way the mask is made; masks are named after it."""
        return "allocated" if self.allocate else self.method

    @property
    def protects_prefix(self) -> bool:
        """Whether prefix tokens keep all their keys and queries: unless told otherwise, not for std."""
        return self.method != "std" if self.protect_prefix is None else self.protect_prefix
