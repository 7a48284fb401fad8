"""Where a calibration keeps the tokens of its images: in memory, or in a file that the system pages in and out.

Tokens are float32 in both, as the residual stream of a model is in every precision: in half precision what a block
adds would be rounded to a share of a channel's mean. So results don't depend on where they are, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitcod_cli.artifacts.scratch import mapped_file
from vitcod_cli.distributed import gather_objects, least
from vitcod_cli.errors import VitcodError
from vitcod_cli.machine import available_gpu_memory, available_memory, gigabytes, local_processes

_SHARE = 0.8
"""Of what memory is left; how much else will be needed is an estimate."""


@dataclass(frozen=True)
class TokenStore:
    """A place for tokens.

    Attributes:
        device: what they are on.
        folder: of the temporary file that holds them; None: they are in the memory of ``device``.
    """

    device: torch.device
    folder: Path | None = None

    @classmethod
    def choose(cls, tokens: int, step: int, device: torch.device, folder: Path) -> TokenStore:
        """The quickest place that has room; all processes call it together, before any takes memory.

        Args:
            tokens: bytes of the tokens of this process. step: bytes of a step of calibration.
            device: that of the model. folder: for a file, where no memory has room.
        """
        on_gpu = device.type == "cuda"
        tokens, step = max(gather_objects((tokens, step)))  # of the largest share, so that all choose alike
        if on_gpu and tokens + step <= least(available_gpu_memory(device), tokens + step):
            return cls(device)
        need = max(gather_objects(local_processes())) * (tokens + (0 if on_gpu else step))
        fits = need <= _SHARE * least(available_memory(), math.ceil(need / _SHARE))
        return cls(torch.device("cpu"), None if fits else folder)

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Room for float32 tokens [images, N, C] of any value.

        Raises:
            VitcodError: if the disk has none.
        """
        if self.folder is None:
            return torch.empty(tuple(shape), device=self.device)
        size = 4 * math.prod(shape)
        try:
            return torch.from_numpy(mapped_file(self.folder, shape, np.float32))
        except OSError as error:
            raise VitcodError(
                f"The tokens of the calibration images need a temporary file of {gigabytes(size)} in "
                f"{self.folder}, which can't be made ({error.strerror}); free some space, or lower "
                "--calibrate-images or --calibrate-crops."
            ) from error
