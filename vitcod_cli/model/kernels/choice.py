"""Which kernel a masked layer takes for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcod_cli.model.kernels.base import Kernel, added_to_logits
from vitcod_cli.model.kernels.flex import FlexKernel
from vitcod_cli.model.kernels.fused import PREPARED, FusedKernel
from vitcod_cli.model.kernels.measured import MeasuredKernel
from vitcod_cli.model.kernels.planned import PlannedKernel, plan_attention
from vitcod_cli.model.settings import AttentionKernel

PLANNED = (torch.float32, torch.bfloat16)
"""What plans are known to pay in: in float16 a CPU computes nothing fast."""


def inference_kernel(
    keep: Tensor | None,
    grid: tuple[int, int],
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    asked: AttentionKernel = "auto",
    all_rows: bool = True,
) -> Kernel:
    """A kernel that has prepared its mask and bias, on the device that they are on.

    Args:
        keep: bool [H, N, N], or None.
        grid: patches along height and width.
        dtype: what attention will be computed in.
        bias: what is added to the logits beside the mask, [H, N, N], or None.
        asked: by name; auto: planned where that is expected to pay on a CPU, fused everywhere else.
        all_rows: whether all rows will be computed; only then can products be left out.
    """
    if keep is None:
        return FusedKernel(None if bias is None else bias.to(dtype)[None])
    on_cpu = keep.device.type == "cpu"
    if asked == "flex" and all_rows:
        return FlexKernel(keep, grid, bias=bias)
    additive, plan = None, None
    if keep.numel() <= PREPARED:
        added = added_to_logits(keep, bias, dtype)
        additive = None if added is None else added[None]
    if asked != "fused" and all_rows and on_cpu and dtype in PLANNED:
        plan = plan_attention(keep, grid, bias, dtype)
    usual = FusedKernel(additive) if plan is None else PlannedKernel(plan, additive)
    if asked != "measured" or not all_rows or on_cpu:  # FlexAttention on a CPU is for tests
        return usual
    flex = FlexKernel(keep, grid, bias=bias)
    return MeasuredKernel([usual, flex], flex.work)
