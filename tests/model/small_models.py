"""Small models of every kind that we treat."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitcod_cli.artifacts.model_config import ModelConfig, SvdType
from vitcod_cli.attention.collect import CollectingKernel
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.build import build_model
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.kernels.base import Heads, Kernel, masked_logits, merge
from vitcod_cli.model.layers import attention_shape, attentions, using
from vitcod_cli.model.passes import rotary_embedding, shared_bias

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "pooled, no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "deit3": ("deit3_small_patch16_224", {}),
    "query-key norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "attention norm": ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
    "no query-key-value bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "even head count": ("deit_tiny_patch16_224", {"num_heads": 4}),
    "one head": ("deit_tiny_patch16_224", {"num_heads": 1}),
    "parallel blocks": ("vit_small_patch16_18x2_224", {}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "EVA-02, three projections": ("eva02_base_patch14_224", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "DINOv3, key bias": ("vit_small_patch16_dinov3_qkvb", {}),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", {}),
    "RoPE of each head": ("vit_small_patch16_rope_mixed_224", {}),
    "grouped queries": ("vit_5b_patch16_sapiens2", {"num_kv_heads": 1}),
    "BEiT": ("beit_base_patch16_224", {}),
    "BEiT, shared bias": ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "relative position": ("vit_relpos_small_patch16_224", {}),
    "shared relative position": ("vit_srelpos_small_patch16_224", {}),
}

NO_AUTO_ENCODER = {"RoPE of each head", "grouped queries"}
"""Of them, those that can have none."""


def with_svd_types(*svd_types: SvdType) -> list[tuple[str, SvdType]]:
    """All kinds with each of ``svd_types`` that they can have."""
    return [(kind, each) for kind in KINDS for each in svd_types if each == "none" or kind not in NO_AUTO_ENCODER]


def beside(model: Transformer, index: int = 0) -> dict[str, Tensor | None]:
    """What attention layer ``index`` takes beside the tokens, by the name of the argument."""
    if isinstance(model, Eva):
        rope = rotary_embedding(model)
        return {"rope": rope[index] if rope is not None and model.rope_mixed else rope}
    if isinstance(model, Beit):
        return {"shared_rel_pos_bias": shared_bias(model)}
    return {} if isinstance(model, VisionTransformer) else {"shared_rel_pos": shared_bias(model)}


def config_of(kind: str, **values: Any) -> ModelConfig:
    """The config of one of ``KINDS``, 32 x 32 pixels, 5 classes."""
    name, kwargs = KINDS[kind]
    config = ModelConfig(model=name, num_classes=5, img_size=(32, 32), model_kwargs={**SMALL, **kwargs})
    return config.changed(**values)


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """Built and filled with weights large enough that attention is far from uniform; in eval mode."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    fill(model)
    return model


@torch.no_grad()
def fill(model: Transformer) -> None:
    """Random weights of a size that makes every part of the model matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            sharp = any(part in name for part in ("qkv", "q_proj", "k_proj"))
            parameter.normal_(std=parameter[0].numel() ** -0.5 * (2 if sharp else 1))
        elif "norm" not in name:
            parameter.normal_(std=0.2)


def timm_twin(model: Transformer, config: ModelConfig) -> Transformer:
    """The same weights in timm's own, untreated model."""
    twin = timm.create_model(
        config.model, num_classes=config.num_classes, img_size=config.img_size, **config.model_kwargs
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def random_keep(model: Transformer, share: float = 0.4, seed: int = 0) -> Tensor:
    """A mask [L, H, N, N] that keeps about ``share`` and the diagonal."""
    shape = attention_shape(model)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    return keep | torch.eye(shape[-1], dtype=torch.bool)


def collect(model: Transformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the attention map [L, H, N, N], through the path that collects probabilities."""
    sums = torch.zeros(attention_shape(model), dtype=torch.float64)
    with using(model, lambda index: CollectingKernel(sums[index])):
        logits = model(images)
    return logits, sums / len(images)


class ObservingKernel(Kernel):
    """The definition, masked logits first; keeps the logits [B, H, N, N] of each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        self.seen.append(masked_logits(heads.q, heads.k, keep, heads.bias))
        return merge(self.seen[-1].softmax(dim=-1) @ heads.v)


def first(model: Transformer) -> SparseLowRankAttention:
    """The first attention layer."""
    return attentions(model)[0]
