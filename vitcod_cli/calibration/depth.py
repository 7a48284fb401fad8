"""What a block's place in the model decides of its fit: its learning rate, and what of its error counts.

In the first blocks patch tokens carry the image, and what is fitted to a few images holds for others. Behind them
the class token does, of which an image has one: what late blocks learn of it they know by heart. So these take
smaller steps, and look at the class token rather than at the others. Where a head reads pooled patch tokens, which
are many, no block is late. See docs/research.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How the fit changes from the first block to the last.

    Attributes:
        ahead: blocks of the teacher behind the one that is fitted whose outputs count, too.
        late_from: share of the blocks in front of the late ones.
        late_rate: learning rate of a late block, as a share of an early one's.
        late_class_share: share of a late block's error that the class token gets, beside its share as a prefix
            token.
        joint_rate: learning rate of the fit of the early blocks as one, as a share of an early block's own.
    """

    ahead: int = 2
    late_from: float = 0.5
    late_rate: float = 0.3
    late_class_share: float = 0.93
    joint_rate: float = 0.3

    def is_late(self, index: int, blocks: int, class_tokens: int) -> bool:
        """Whether block ``index`` is late, in a model whose head reads so many class tokens alone."""
        return class_tokens > 0 and index >= self.early(blocks)

    def learning_rate(self, early: float, index: int, blocks: int, class_tokens: int) -> float:
        """The peak learning rate of block ``index``, where that of the ``early`` ones is given."""
        return early * self.late_rate if self.is_late(index, blocks, class_tokens) else early

    def class_share(self, index: int, blocks: int, class_tokens: int) -> float:
        """What the class tokens get of the error of block ``index`` beforehand."""
        return self.late_class_share if self.is_late(index, blocks, class_tokens) else 0.0

    def early(self, blocks: int) -> int:
        """How many blocks are in front of where late ones may begin."""
        return math.ceil(self.late_from * blocks)
