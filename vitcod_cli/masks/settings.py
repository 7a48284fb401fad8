"""Which mask to make of an attention map: the methods, and what is common to all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import Allocated
from vitcod_cli.masks.block_settings import BlockSettings
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.masks.info import Info
from vitcod_cli.masks.method import DEFAULT_SPARSITY, MaskMethod, SparsityError
from vitcod_cli.masks.order_settings import OrderSettings
from vitcod_cli.masks.random import Random
from vitcod_cli.masks.ratio import Ratio
from vitcod_cli.masks.std import Std
from vitcod_cli.settings import ResultSettings, Settings, required, setting, settings_of

METHODS: dict[str, type[MaskMethod]] = {"info": Info, "ratio": Ratio, "std": Std, "random": Random}
"""The methods by name. A new one is a file beside these, a line here and one in :class:`MaskSettings`."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings(Settings, panel="Mask"):
    """How entries of the attention map are chosen."""

    method: Literal["info", "ratio", "std", "random"] = setting(
        "info",
        "info (the paper's): the keys of each row that hold most of its attention; ratio: the same number of keys "
        "in each row; std: keys above the row's mean + coefficient * std; random.",
    )
    num_prefix_tokens: int | None = setting(
        None,
        "Tokens before the patches (class, distillation, registers).",
        minimum=0,
        show_default="what the map says; 1 for a published .npy",
    )
    protect_prefix: bool | None = setting(
        None,
        "Keep the rows and columns of prefix tokens whole.",
        flag="--protect-prefix/--no-protect-prefix",
        show_default="protected, but for std as published",
    )
    tiles: BlockSettings = field(default_factory=BlockSettings)
    info: Info = field(default_factory=Info)
    allocated: Allocated = field(default_factory=Allocated)
    ratio: Ratio = field(default_factory=Ratio)
    std: Std = field(default_factory=Std)
    random: Random = field(default_factory=Random)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_options_of_others()
        self._check_block()
        getattr(self, self.method).check()
        if not self.allocated.allocate:
            for flag, given in (
                ("--lanes", self.allocated.lanes is not None),
                ("--min-density", self.allocated.floor != FloorSettings()),
            ):
                if given:
                    raise VitcodError(f"{flag} is an option of --allocate: say that too, or leave it out.")
            return
        if self.method != "info" or self.info.info_cut is not None:
            other = "--info-cut" if self.method == "info" else f"--method {self.method}"
            raise VitcodError(
                f"--allocate spends a --sparsity and makes no use of {other}; leave one of them out."
            )
        if self.protect_prefix is False:
            raise VitcodError("--allocate keeps the prefix tokens whole; leave --no-protect-prefix out.")
        if conflict := self.allocated.floor.conflict(self._allocated_sparsity):
            raise SparsityError(conflict)

    def _check_block(self) -> None:
        if not self.tiles.given:
            return
        flag = self.tiles.chosen_by
        if self.allocated.lanes is not None:
            raise VitcodError(
                f"--lanes fills lines of an accelerator with single entries; leave it or {flag} out."
            )
        if self.allocated.floor != FloorSettings():
            raise VitcodError(f"--min-density counts single entries; leave it or {flag} out.")

    def _refuse_options_of_others(self) -> None:
        """What means something to other methods only is refused, not ignored."""
        own = settings_of(METHODS[self.method])
        for name, method in METHODS.items():
            for option, info in settings_of(method).items():
                value = getattr(getattr(self, name), option)
                if option in own or value is None or getattr(method(), option) is not None:
                    continue
                methods = [other for other in METHODS if option in settings_of(METHODS[other])]
                raise VitcodError(
                    f"{info.flag} goes with --method {' or '.join(methods)}, not with {self.method}."
                )

    @property
    def chosen(self) -> MaskMethod:
        """The method, with its options."""
        if self.allocated.allocate:
            return self.allocated.changed(target=self._allocated_sparsity)
        method: MaskMethod = getattr(self, self.method)
        return method

    @property
    def name(self) -> str:
        """What files are named after: the method, and the size of its tiles."""
        return self.chosen.name + self.tiles.suffix

    @property
    def _allocated_sparsity(self) -> float:
        return DEFAULT_SPARSITY if self.info.sparsity is None else self.info.sparsity

    @property
    def protects_prefix(self) -> bool:
        """Whether prefix tokens keep all their keys and queries: unless told otherwise, not for std."""
        return self.chosen.protects_prefix if self.protect_prefix is None else self.protect_prefix


@dataclass(frozen=True, kw_only=True)
class MaskOptions(Settings):
    """Options of ``gen-mask``."""

    attn_map: str = required(
        "Mean attention map: from dump-attn, or a published .npy.",
        "name the attention map that vitcod dump-attn wrote.",
        panel="Mask",
        metavar="FILE",
        aliases=("--attn",),
    )
    output: str | None = setting(
        None,
        "File to write.",
        panel="Output",
        metavar="FILE",
        show_default="named after method and sparsity reached, as info_0.90.safetensors",
    )
    output_dir: str = setting(".", "Folder of a file named so.", panel="Output", metavar="FOLDER")
    overwrite: bool = setting(False, "Replace the file when it is there already.", panel="Output")
    polarize: bool = setting(
        False,
        "Save the order in which an accelerator takes the tokens, too, as vitcod polarize does.",
        panel="Order",
    )
    mask: MaskSettings = field(default_factory=MaskSettings)
    order: OrderSettings = field(default_factory=OrderSettings)
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.polarize and self.order != OrderSettings():
            flag = next(iter(self.order.arguments()))
            raise VitcodError(f"{flag} says how to polarize: say --polarize too, or leave it out.")
