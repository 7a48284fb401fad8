"""What is in a checkpoint: model, sizes, auto-encoders, mask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitcod_cli.artifacts.checkpoint import Checkpoint
from vitcod_cli.artifacts.mask import MASK_NAME


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Plain values, ``kept_energy`` by block and projection, and ``sparsity`` where there is a mask."""
    masks = {name: tensor for name, tensor in checkpoint.state_dict.items() if MASK_NAME.fullmatch(name)}
    weights = {name: tensor for name, tensor in checkpoint.state_dict.items() if name not in masks}
    sizes: Counter[str] = Counter()
    for tensor in weights.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    entries = sum(mask.numel() for mask in masks.values())
    return {
        "layout": checkpoint.layout,
        "model_config": None if checkpoint.config is None else checkpoint.config.to_dict(),
        "parameters": sum(sizes.values()),
        "by_dtype": dict(sizes),
        "tensors": len(checkpoint.state_dict),
        "kept_energy": kept_energy(weights),
        "sparsity": 1 - sum(int(mask.count_nonzero()) for mask in masks.values()) / entries if entries else None,
    }


def kept_energy(weights: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """What the auto-encoders leave of the projections of Q and K, block by block: 1 - |W - D E W|^2 / |W|^2.

    W [heads, head_dim * width] are a projection's rows, in ``qkv`` or by themselves, head by head; biases don't
    count.
    """
    found: dict[str, list[float]] = {}
    for letter, place in (("q", 0), ("k", 1)):
        for block in range(len(weights)):
            prefix = f"blocks.{block}.attn"
            encoder = weights.get(f"{prefix}.encoder_{letter}.weight")
            decoder = weights.get(f"{prefix}.decoder_{letter}.weight")
            packed, own = weights.get(f"{prefix}.qkv.weight"), weights.get(f"{prefix}.{letter}_proj.weight")
            if packed is not None and len(packed) % 3 == 0:
                own = packed.chunk(3)[place]
            if encoder is None or decoder is None or own is None:
                break
            found.setdefault(letter, []).append(_energy(own, encoder, decoder))
    return found


def _energy(weight: Tensor, encoder: Tensor, decoder: Tensor) -> float:
    heads = encoder.shape[-1]
    if len(weight) % heads or decoder.shape != encoder.T.shape:
        return math.nan  # no auto-encoder of these heads
    rows = weight.double().reshape(heads, -1)
    lost = rows - decoder.double() @ (encoder.double() @ rows)
    return 1 - float(torch.linalg.vector_norm(lost) ** 2 / torch.linalg.vector_norm(rows) ** 2)
