"""Parameters and multiply-accumulates, counted exactly; nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitcod_cli.bench.workload import synthetic_images
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.auto_encoder import projections
from vitcod_cli.model.build import model_config, plain_model
from vitcod_cli.model.families import Transformer, num_tokens, treatment
from vitcod_cli.model.layers import attentions


@dataclass(frozen=True)
class Counts:
    """What a model holds, and its arithmetic for one image at inference.

    Attributes:
        parameters: all numbers that are trained, auto-encoders included.
        auto_encoder_parameters: those of the head auto-encoders.
        auto_encoder_macs: 0 where they are folded into qkv; behind a norm on Q and K they can't be.
        macs: multiply-accumulates of these, linear layers, convolutions and attention products; norms,
            activations and softmax are left out, as is usual. Rows of the last block that the head doesn't read
            (:mod:`vitcod_cli.model.read_rows`) are counted, so that figures are those that others publish.
        attention_macs: those of them in the blocks' Q K^T and A V, without regard to a mask.
        kept_attention_macs: those left when entries that the mask prunes are skipped. A dense kernel
            under a mask skips none; hardware made for the pattern does.
    """

    parameters: int
    auto_encoder_parameters: int
    auto_encoder_macs: int
    macs: int
    attention_macs: int
    kept_attention_macs: int

    @property
    def attention_share(self) -> float:
        """Share of the attention products in all arithmetic."""
        return self.attention_macs / self.macs

    @property
    def saved_attention_share(self) -> float:
        """Share of the attention products that the mask leaves out."""
        return 1 - self.kept_attention_macs / self.attention_macs

    @property
    def saved_share(self) -> float:
        """Share of all arithmetic that the mask leaves out."""
        return (self.attention_macs - self.kept_attention_macs) / self.macs


def count(model: Transformer) -> Counts:
    """Count ``model``, ours or timm's own: what its config says, the mask and the auto-encoders it has."""
    ours, tokens = attentions(model), num_tokens(model)
    dense = sum(2 * width * tokens**2 for width in map(_attention_width, model.modules()))
    pruned = sum(2 * layer.head_dim * int((~layer.keep).sum()) for layer in ours if layer.keep is not None)
    coders = sum(_unfolded(layer, tokens) for layer in ours)
    return Counts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        auto_encoder_parameters=sum(map(_auto_encoder_parameters, ours)),
        auto_encoder_macs=coders,
        macs=_plain_macs(model) + coders,
        attention_macs=dense,
        kept_attention_macs=dense - pruned,
    )


def _plain_macs(model: Transformer) -> int:
    """Of timm's own model of this config, as torch counts them; no memory is taken, nothing computed."""
    with torch.device("meta"):
        plain = plain_model(model_config(model)).eval().requires_grad_(False)
        image = synthetic_images(plain, 1, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        plain(image)
    return int(counter.get_total_flops()) // 2


def _attention_width(layer: nn.Module) -> int:
    """H*d of an attention layer, ours or timm's own; 0 of everything else."""
    if not isinstance(layer, SparseLowRankAttention) and treatment(layer) is None:
        return 0
    assert isinstance(layer.proj, nn.Linear)
    return layer.proj.in_features


def _auto_encoder_parameters(layer: SparseLowRankAttention) -> int:
    parts = [part for letter in "qk" for part in layer.auto_encoder(letter) or ()]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def _unfolded(layer: SparseLowRankAttention, tokens: int) -> int:
    """MACs of auto-encoders that can't be folded into qkv: one H x H map for each token and channel."""
    if layer.foldable:
        return 0
    return len(projections(layer.svd_type)) * int(layer.num_heads) ** 2 * int(layer.head_dim) * tokens
