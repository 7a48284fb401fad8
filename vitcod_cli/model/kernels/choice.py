"""Which kernel a masked layer takes for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcod_cli.model.kernels.base import Kernel, additive_mask
from vitcod_cli.model.kernels.flex import FlexKernel
from vitcod_cli.model.kernels.fused import FusedKernel
from vitcod_cli.model.kernels.measured import MeasuredKernel
from vitcod_cli.model.kernels.planned import PlannedKernel, plan_attention
from vitcod_cli.model.settings import AttentionKernel


def inference_kernel(
    keep: Tensor,
    grid: tuple[int, int],
    dtype: torch.dtype,
    *,
    asked: AttentionKernel = "auto",
    all_rows: bool = True,
    packed: bool = True,
) -> Kernel:
    """A kernel that has prepared its mask, on the device that the mask is on.

    Args:
        keep: bool [H, N, N].
        grid: patches along height and width.
        dtype: what attention will be computed in.
        asked: by name; auto: planned where that is expected to pay on a CPU, fused everywhere else.
        all_rows: whether all rows will be computed; only then can products be left out.
        packed: whether the layer gives Q, K and V in one tensor, which a plan gathers from.
    """
    on_cpu = keep.device.type == "cpu"
    if asked == "flex" and all_rows:
        return FlexKernel(keep, grid)
    additive, plan = additive_mask(keep, dtype)[None], None
    if asked != "fused" and all_rows and packed and on_cpu and dtype == torch.float32:
        plan = plan_attention(keep, grid)
    usual = FusedKernel(additive) if plan is None else PlannedKernel(plan, additive)
    if asked != "measured" or not all_rows or on_cpu:  # FlexAttention on a CPU is for tests
        return usual
    flex = FlexKernel(keep, grid)
    return MeasuredKernel([usual, flex], flex.work)
