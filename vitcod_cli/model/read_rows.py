"""The last block computes only the rows that the head reads, on the way from images to logits.

A head that reads the class token alone gets one row of the last block's output; that of a distilled model two.
All tokens are keys and values in that block, but what it computes of the other rows (queries, attention,
projection, MLP) reaches no logit. Leaving it out is exact, and saves 7 % of a DeiT-Tiny forward at 224 pixels.
Only ``forward`` does so: ``forward_features`` and its like give all rows, as does a forward that somebody watches.
"""

from __future__ import annotations

from functools import partial

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import PlainAttention, Transformer
from vitcod_cli.model.passes import BlockPass, tokens_of


class ReadRowsTransformer(VisionTransformer):
    """timm's Vision Transformer with another way from images to logits; the same parameters by the same names."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes], or features where there is no head."""
        rows = None if attn_mask is not None or is_causal or _is_watched(self) else rows_read(self)
        if rows is None:
            logits: Tensor = super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
            return logits
        x = tokens_of(self, x)
        *blocks, last = self.blocks.children()
        for block in blocks:
            x = block(x)
        logits = self.forward_head(self.norm(_first_rows(last, x, rows)))
        return logits


class ReadRowsDistilled(ReadRowsTransformer, VisionTransformerDistilled):
    """The same of a model with a distillation token; in distilled training it gives the logits of both heads."""


_CLASSES: dict[type[nn.Module], type[ReadRowsTransformer]] = {
    VisionTransformer: ReadRowsTransformer,
    VisionTransformerDistilled: ReadRowsDistilled,
}


def leave_out_unread_rows(model: Transformer) -> None:
    """Make ``model``, as timm built it, one whose ``forward`` leaves unread rows out; others stay as they are."""
    # timm chooses the class of a model by its name, and no argument of it changes that.
    own = _CLASSES.get(type(model))
    if own is not None:
        model.__class__ = own


def rows_read(model: Transformer) -> int | None:
    """How many rows of the last block the head of ``model`` reads, the first ones; None where it computes all."""
    if not isinstance(model, ReadRowsTransformer) or model.grad_checkpointing or not len(model.blocks):
        return None
    last = model.blocks[-1]
    if type(last) is not Block or type(last.attn) is not PlainAttention:
        return None
    return _class_tokens_pooled(model)


def read_by_head(model: Transformer) -> slice | None:
    """Which tokens of the last block's output reach the logits of ``model``.

    None: all do, or there is no head, and whoever takes the features may read any of them.
    """
    if not model.num_classes:
        return None
    first = _class_tokens_pooled(model)
    if first is not None:
        return slice(0, first)
    # Attention pooling looks at prefix tokens, too, in Eva.
    pools_patches = model.global_pool in ("avg", "avgmax", "max") or (
        model.global_pool == "map" and isinstance(model, VisionTransformer)
    )
    if not pools_patches or getattr(model, "pool_include_prefix", False):
        return None
    return slice(model.num_prefix_tokens, None)


def _class_tokens_pooled(model: Transformer) -> int | None:
    """How many first tokens are all that is read; None where pooling takes others."""
    if isinstance(model, VisionTransformerDistilled):
        return 2
    return 1 if model.global_pool == "token" else None


def class_tokens_read(model: Transformer) -> int:
    """How many class (and distillation) tokens are all that the head of ``model`` reads; 0 if it reads others."""
    read = read_by_head(model)
    return 0 if read is None else read.stop or 0


def last_block_pass(model: Transformer, block_pass: BlockPass) -> BlockPass:
    """``block_pass``, that of the last block, for the tokens that :func:`read_by_head` names."""
    read = read_by_head(model)
    if read is None:
        return block_pass
    rows = rows_read(model)
    if rows is not None:
        return partial(_first_rows, model.blocks[-1], rows=rows)
    return lambda tokens: block_pass(tokens)[:, read]


def _first_rows(block: nn.Module, x: Tensor, rows: int) -> Tensor:
    """The first ``rows`` of what timm's ``Block`` makes of tokens ``x`` [B, N, C]: [B, rows, C]."""
    assert isinstance(block, Block)
    x = x[:, :rows] + block.drop_path1(block.ls1(block.attn(block.norm1(x), rows=rows)))
    first: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return first


def _is_watched(model: VisionTransformer) -> bool:
    """Whether somebody has to see all rows: a hook, a kernel that collects, a ``forward`` in another's place."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or (isinstance(module, SparseLowRankAttention) and module.kernel.needs_all_rows)
        for module in (model.blocks, model.norm, *model.blocks[-1].modules())
    )
