"""The fastest of several kernels on this device, as measured at the first batch of each size."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from vitcod_cli.model.kernels.base import Heads, Kernel

SECONDS = 0.05
"""How long each kernel is measured."""

MARGIN = 0.97
"""Share of the first kernel's time that another must stay below: less may be noise."""

_FASTEST: dict[Hashable, int] = {}
"""What has been measured in this process."""


class MeasuredKernel(Kernel):
    """Of some kernels that compute the same, the one that took least time at inference; in training the first.

    Args:
        kernels: the first is taken where others aren't faster.
        work: what the time of the others depends on beside shapes and dtype, such as how many tiles they compute.
    """

    needs_all_rows = False

    def __init__(self, kernels: Sequence[Kernel], work: Hashable) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(kernels)
        self.work = work

    def forward(self, heads: Heads, keep: Tensor | None, dropout: float = 0.0) -> Tensor:
        """See :class:`~vitcod_cli.model.kernels.base.Kernel`."""
        trains = self.training or dropout > 0 or torch.is_grad_enabled()
        some_rows = heads.q.shape[-2] != heads.k.shape[-2]
        index = 0 if trains or some_rows else self._fastest(heads, keep)
        attended: Tensor = self.kernels[index](heads, keep, dropout)
        return attended

    def _fastest(self, heads: Heads, keep: Tensor | None) -> int:
        kinds = tuple(type(kernel) for kernel in self.kernels)
        key = (kinds, self.work, heads.v.device, heads.v.dtype, heads.q.shape)
        if key not in _FASTEST:
            first, *others = measure_kernels(list(self.kernels), heads, keep)
            best = min(others, default=first)
            _FASTEST[key] = others.index(best) + 1 if best < MARGIN * first else 0
        return _FASTEST[key]


def measure_kernels(kernels: Sequence[nn.Module], heads: Heads, keep: Tensor | None) -> list[float]:
    """Seconds that each kernel takes for these heads, the median of some calls after a first one."""
    from torch.utils.benchmark import Timer

    seconds = []
    for kernel in kernels:
        kernel(heads, keep)  # which may have to be compiled
        known = {"kernel": kernel, "heads": heads, "keep": keep}
        timer = Timer("kernel(heads, keep)", globals=known, num_threads=torch.get_num_threads())
        seconds.append(timer.blocked_autorange(min_run_time=SECONDS).median)
    return seconds
