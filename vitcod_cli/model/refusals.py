"""Why an architecture of timm's can't be treated, and why some of those that can take no head auto-encoder."""

from __future__ import annotations

from timm.models.eva import Eva
from torch import nn

from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.families import Transformer, treatment

WINDOWS = "its attention is within windows or over pooled tokens, and differs in size from stage to stage"
OTHER_SCORES = "its attention is no softmax over the keys in each head by itself"
ANY_GRID = "its images have any number of patches, and a mask is for one grid"

REASONS = {
    "Cait": "its heads are mixed before and after the softmax",
    "ConVit": OTHER_SCORES,
    "CrossVit": "its blocks attend between two sequences of tokens",
    "DaVit": WINDOWS,
    "DeepseekVitClassifier": ANY_GRID,
    "DeepseekVitEncoder": ANY_GRID,
    "EfficientVit": OTHER_SCORES,
    "EfficientVitLarge": OTHER_SCORES,
    "EfficientVitMsra": WINDOWS,
    "Gemma4VitClassifier": ANY_GRID,
    "Gemma4VitEncoder": ANY_GRID,
    "GlobalContextVit": WINDOWS,
    "Hiera": WINDOWS,
    "HieraDet": WINDOWS,
    "Levit": WINDOWS,
    "LevitDistilled": WINDOWS,
    "MaxxVit": WINDOWS,
    "MultiScaleVit": WINDOWS,
    "NaFlexVit": ANY_GRID,
    "Nest": WINDOWS,
    "PoolingVisionTransformer": WINDOWS,
    "PyramidVisionTransformerV2": WINDOWS,
    "Qwen3VitClassifier": ANY_GRID,
    "Qwen3VitEncoder": ANY_GRID,
    "SwinTransformer": WINDOWS,
    "SwinTransformerV2": WINDOWS,
    "SwinTransformerV2Cr": WINDOWS,
    "TNT": "its blocks attend within patches, too",
    "TinyVit": WINDOWS,
    "Twins": WINDOWS,
    "VOLO": "its first blocks are no softmax over all tokens",
    "VisionTransformerSAM": WINDOWS,
    "Xcit": "it attends between channels, not between tokens",
}
"""Of classes of models that have attention."""

BLOCKS = {
    "DiffParallelScalingBlock": "its attention is the difference of two softmaxes",
    "ParallelScalingBlock": "its blocks project Q, K, V and the MLP in one product",
}
"""Of blocks in models whose class has others that can be treated."""


def refusal(model: nn.Module) -> str | None:
    """Why ``model``, as timm built it, can't be treated; None if it can."""
    if not isinstance(model, Transformer):
        return REASONS.get(type(model).__name__, "it is no Vision Transformer with the same blocks throughout")
    other = [block for block in model.blocks.children() if not any(map(treatment, block.modules()))]
    if not other and len(model.blocks):
        return None
    kinds = {type(part).__name__ for part in (other[0].modules() if other else ())}
    reasons = [reason for kind, reason in BLOCKS.items() if kind in kinds]
    if "DiffAttention" in kinds:
        reasons.insert(0, BLOCKS["DiffParallelScalingBlock"])
    return reasons[0] if reasons else "not all of its blocks have an attention of timm's plain kind"


def auto_encoder_refusal(model: Transformer) -> str | None:
    """Why ``model`` can have no head auto-encoder; None if it can. Masks are another matter."""
    if isinstance(model, Eva) and model.rope_mixed:
        return "its rotary embedding differs from head to head, and heads can't be mixed before it"
    layers = [module for module in model.modules() if isinstance(module, SparseLowRankAttention)]
    if any(layer.num_kv_heads < layer.num_heads for layer in layers):
        return "several heads of Q share one of K (grouped queries), so K has fewer heads already"
    return None
