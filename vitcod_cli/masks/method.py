"""What a method of ``gen-mask`` is: its options, and the mask that it makes of a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.ranking import Keep
from vitcod_cli.settings import Settings, flag_of, setting

DEFAULT_SPARSITY = 0.9


class SparsityError(VitcodError):
    """A sparsity that a map can't give: what must be kept is more, or less, than it leaves."""


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

    def check(self) -> None:
        """Raise a VitcodError where the options contradict each other."""
        if self.sparsity is not None and getattr(self, self.own_option) is not None:
            flag = flag_of(self.own_option)
            raise VitcodError(
                f"--sparsity and {flag} exclude each other: --sparsity finds the {self.finds}; give one."
            )
