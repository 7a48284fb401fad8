"""What a method of ``gen-mask`` is: its options, and the mask that it makes of a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.prefix import fill_empty_rows, keep_prefix
from vitcod_cli.masks.ranking import Keep
from vitcod_cli.settings import Settings, flag_of, setting

DEFAULT_SPARSITY = 0.9

MethodT = TypeVar("MethodT", bound="MaskMethod")
ExactT = TypeVar("ExactT", bound="Exact")


class SparsityError(VitcodError):
    """A sparsity that a map can't give: what must be kept is more, or less, than it leaves."""


class Made(NamedTuple):
    """A mask that is ready.

    Attributes:
        keep: bool [L, H, N, N], no row of it empty.
        parameters: what it was made with.
        filled: how many rows would have been empty, and keep their largest key.
    """

    keep: Keep
    parameters: dict[str, Any]
    filled: int


@dataclass(frozen=True, kw_only=True)
class MaskMethod(Settings, panel="Mask"):
    """A way to choose which entries of an attention map are kept; a subclass a file.

    Its fields are the method's options. What is None has the default that its help names, so that an
    option of another method can be refused.

    Attributes:
        name: what masks are named after.
        protects_prefix: whether the rows and columns of prefix tokens are kept unless the user says otherwise.
    """

    name: ClassVar[str]
    protects_prefix: ClassVar[bool] = True

    @property
    def wanted(self) -> float | None:
        """The sparsity that is asked for; None where something else says what is pruned."""
        raise NotImplementedError

    def at(self: MethodT, sparsity: float) -> MethodT:
        """The same method, asked for another sparsity."""
        raise NotImplementedError

    def make(self, attention_map: AttentionMap, num_prefix_tokens: int) -> Made:
        """The mask by :meth:`keep` with its prefix tokens kept, and a key in every row."""
        keep, parameters = self.keep(attention_map, num_prefix_tokens)
        if num_prefix_tokens:
            keep = keep_prefix(keep, num_prefix_tokens)
        return Made(keep, parameters, fill_empty_rows(keep, attention_map.attention))

    def keep(self, attention_map: AttentionMap, num_prefix_tokens: int) -> tuple[Keep, dict[str, Any]]:
        """The mask, bool [L, H, N, N], and the parameters that it was made with.

        Args:
            attention_map: rows of its attention sum to 1.
            num_prefix_tokens: tokens whose rows and columns will be kept, whatever the method says of them.

        Raises:
            VitcodError: if the options ask for what the map can't give.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Exact(MaskMethod):
    """A method that can be told how sparse its masks shall be.

    Attributes:
        own_option: what it prunes by where no sparsity is asked for; they exclude each other.
        finds: what a sparsity determines, in words.
    """

    own_option: ClassVar[str]
    finds: ClassVar[str]

    sparsity: float | None = setting(
        None,
        "Share of entries to prune among all, prefix tokens included.",
        minimum=0,
        maximum=1,
        show_default=f"{DEFAULT_SPARSITY} for info",
    )

    @property
    def wanted(self) -> float | None:
        """See :class:`MaskMethod`."""
        return self.sparsity

    def at(self: ExactT, sparsity: float) -> ExactT:
        """See :class:`MaskMethod`."""
        return self.changed(sparsity=sparsity)

    def check(self) -> None:
        """Raise a VitcodError where the options contradict each other."""
        if self.sparsity is not None and getattr(self, self.own_option) is not None:
            flag = flag_of(self.own_option)
            raise VitcodError(
                f"--sparsity and {flag} exclude each other: --sparsity finds the {self.finds}; give one."
            )
