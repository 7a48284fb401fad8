"""Parts of a training step on this CPU, forward and backward, interleaved: which way to take.

    python benchmarks/training_layer.py --width 192 --batch-size 32 --precision float32

The attention of one block, fused and by explicit products; and the qkv projection of a low-rank layer, without a
reconstruction loss, with the loss from folded weights and with the loss from passes over Q and K.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.model import attention
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.kernels.base import additive_mask
from vitcod_cli.model.kernels.explicit import ExplicitAttention
from vitcod_cli.runtime import Runtime, RuntimeSettings, start

HEAD_DIM = 64


def attend(explicit: bool, qkv: Tensor, mask: Tensor, grad: Tensor) -> None:
    """Attention of qkv [B, N, 3, H, d] and its gradient; the mask is [H, N, N]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if explicit:
        attended: Tensor = ExplicitAttention.apply(q, k, v, mask)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
    attended.transpose(1, 2).backward(grad)  # type: ignore[no-untyped-call]
    qkv.grad = None


def project(layer: SparseLowRankAttention, record: bool, width: int, x: Tensor, runtime: Runtime) -> None:
    """Q, K and V of tokens [B, N, C], the reconstruction loss, and their gradients."""
    layer.record_reconstruction = record
    attention.FOLDED_WIDTH[runtime.dtype] = width
    with runtime.autocast():
        outputs = list(layer.project(x)[1:4])
    gradients = [torch.ones_like(output) for output in outputs]
    if layer.reconstruction_loss is not None:
        outputs.append(layer.reconstruction_loss)
        gradients.append(torch.tensor(1e-4))
    torch.autograd.backward(outputs, gradients)
    x.grad = None
    layer.zero_grad()


def main() -> None:
    """One table: median, and multiples of the first row of its kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    heads, shape = options.width // HEAD_DIM, (options.batch_size, options.tokens)
    with start(RuntimeSettings(device="cpu", precision=options.precision)) as runtime:
        qkv = torch.randn(*shape, 3, heads, HEAD_DIM, dtype=runtime.dtype, requires_grad=True)
        grad = torch.randn(*shape, heads, HEAD_DIM, dtype=runtime.dtype)
        keep = torch.rand(heads, options.tokens, options.tokens) < 0.1
        keep[..., 0] = True
        mask = additive_mask(keep, runtime.dtype)
        layer = SparseLowRankAttention(options.width, num_heads=heads, qkv_bias=True)
        layer.add_auto_encoder("mix_head_fc_qk")
        x = torch.randn(*shape, options.width, requires_grad=True)
        kinds: list[dict[str, Callable[[], None]]] = [
            {
                "attention, fused": partial(attend, False, qkv, mask, grad),
                "attention, explicit": partial(attend, True, qkv, mask, grad),
            },
            {
                "projection, no loss": partial(project, layer, False, 0, x, runtime),
                "projection, loss from passes": partial(project, layer, True, 0, x, runtime),
                "projection, loss from weights": partial(project, layer, True, options.width, x, runtime),
            },
        ]
        table = Table("", "ms", "times the first", title=f"{options.width} channels, {options.precision}")
        for works in kinds:
            passes = list(works.values())
            for work in passes:
                work()
            times = time_interleaved(passes, repeats=8, seconds=options.seconds, synchronize=runtime.synchronize)
            for name, seconds in zip(works, times, strict=True):
                ms, multiple = 1e3 * Spread.of(seconds).median, ratio(seconds, times[0]).median
                table.add_row(name, f"{ms:.1f}", f"{multiple:.2f}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
