"""vitcod against the way the published code computes, and against timm, interleaved in one run.

    python benchmarks/published_way.py --model deit_tiny_patch16_224 --batch-size 32

"The published way" is written down here from its description: float32, attention without fusion, the mask
expanded to the batch, Q and K permuted before and after the auto-encoders at every forward. All models
have random weights; ours and the published one share them, with a random mask of 90 %.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.bench.memory import peak_memory
from vitcod_cli.bench.timing import Spread, ratio, time_interleaved
from vitcod_cli.bench.workload import for_inference, forward_pass, make_optimizer, timm_twin, training_step
from vitcod_cli.model.attention import SparseLowRankAttention
from vitcod_cli.model.build import build_model, default_img_size
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape, attentions, set_keep_mask
from vitcod_cli.runtime import RuntimeSettings, start


def low_rank_and_masked(name: str) -> Transformer:
    """A model of random weights with auto-encoders and a mask of 90 %."""
    torch.manual_seed(0)
    config = ModelConfig(model=name, num_classes=1000, img_size=default_img_size(name), svd_type="mix_head_fc_qk")
    model = build_model(config, drop_path=0.1)
    keep = torch.rand(attention_shape(model)) < 0.1
    keep[..., 0] = keep[..., 0, :] = True
    set_keep_mask(model, keep)
    return model


def through_auto_encoder(x: Tensor, encoder: nn.Module, decoder: nn.Module) -> Tensor:
    """x [B, H, N, d] with the heads last, and back."""
    restored: Tensor = decoder(encoder(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return restored


def published_forward(layer: SparseLowRankAttention, x: Tensor, **unused: object) -> Tensor:
    """The layer as it is published."""
    batch, tokens, width = x.shape
    q, k, v = layer.qkv(x).reshape(batch, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    q_hat, k_hat = (
        through_auto_encoder(x, layer.get_submodule(f"encoder_{letter}"), layer.get_submodule(f"decoder_{letter}"))
        for x, letter in ((q, "q"), (k, "k"))
    )
    layer.reconstruction_loss = torch.norm(q - q_hat) + torch.norm(k - k_hat)
    logits = (q_hat @ k_hat.transpose(-2, -1)) * layer.head_dim**-0.5
    assert layer.keep is not None
    pruned = (~layer.keep).expand(batch, -1, -1, -1).contiguous()
    probabilities = logits.masked_fill(pruned, float("-inf")).softmax(dim=-1)
    projected: Tensor = layer.proj((probabilities @ v).transpose(1, 2).reshape(batch, tokens, width))
    return projected


def main() -> None:
    """Forward passes, then training steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="float32", help="of ours and timm's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    ours, published = low_rank_and_masked(options.model), low_rank_and_masked(options.model)
    for layer in attentions(published):
        layer.forward = partial(published_forward, layer)
    timm = timm_twin(ours)
    settings = RuntimeSettings(device=options.device, precision=options.precision)
    with start(settings) as runtime, start(RuntimeSettings(device=options.device, precision="float32")) as plain:
        table = Table("", "ms", "images/s", "peak MiB", "times as fast as published", title=options.model)
        places = {"published way": plain, "vitcod": runtime, "timm, dense": runtime}
        models = {"published way": published, "vitcod": ours, "timm, dense": timm}
        for mode in ("forward", "training"):
            with ExitStack() as stack:
                works, peaks = [], []
                for name, model in models.items():
                    places[name].prepare(model)
                    if mode == "forward":
                        ready = model if name == "published way" else for_inference(model, runtime.dtype)
                        work = forward_pass(ready, options.batch_size, places[name])
                    else:
                        work = training_step(model, make_optimizer(model), options.batch_size, places[name])
                    works.append(stack.enter_context(work))
                    works[-1].run()
                    works[-1].forget()
                    peaks.append(peak_memory(works[-1].run, model, runtime.device))
                passes = [work.run for work in works]
                sync = runtime.synchronize
                times = time_interleaved(passes, repeats=4, seconds=options.seconds, synchronize=sync)
            for name, seconds, peak in zip(models, times, peaks, strict=True):
                ms, faster = 1e3 * Spread.of(seconds).median, ratio(times[0], seconds).median
                memory = "-" if peak is None else f"{peak / 2**20:,.0f}"
                speed = f"{1e3 * options.batch_size / ms:.1f}"
                table.add_row(f"{mode}: {name}", f"{ms:,.0f}", speed, memory, f"{faster:.2f}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
