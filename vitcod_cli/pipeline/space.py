"""Whether the disk has room for all the files that ``compress`` and ``sweep`` leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitcod_cli.artifacts.files import check_space
from vitcod_cli.artifacts.mask import mask_bytes
from vitcod_cli.attention.room import MapBytes
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape
from vitcod_cli.pipeline.options import Method, PipelineOptions

_RUN = 3
"""Checkpoints that a run keeps: the last, the best, and its state."""

_TRAINED = 3
"""What the state of a training has besides, in weights: their average and AdamW's two moments."""


@dataclass(frozen=True)
class Outputs:
    """What a command writes in any case.

    Attributes:
        points: masks, each with a model under it.
        importance: whether the map of the model that they are made for has it.
        adds_heads: whether a dense model gets low-rank heads first.
        delivers: whether the last model is copied to a place of its own.
    """

    points: Sequence[tuple[Method, float]]
    importance: bool = True
    adds_heads: bool = False
    delivers: bool = False

    def files(self, model: Transformer, options: PipelineOptions) -> int:
        """Bytes of all the files, the dense model's to the last one's, about."""
        weights: int = sum(tensor.nbytes for tensor in model.state_dict().values())
        mask = mask_bytes(attention_shape(model))
        run = _RUN * (weights + mask)
        attention_map = MapBytes.of(model, torch.device("cpu"), importance=self.importance).output
        attention_map_on_the_way = MapBytes.of(model, torch.device("cpu"), importance=True).output
        on_the_way = {share for point in self.points for share, _ in options.way_to(*point)}
        adds_heads = self.adds_heads and model_config(model).svd_type == "none"
        return (
            weights
            + int(adds_heads) * _RUN * weights
            + attention_map
            + len(on_the_way) * (mask + run + attention_map_on_the_way)
            + len(self.points) * (mask + run + (options.epochs > 0) * _TRAINED * weights)
            + self.delivers * (weights + mask)
        )

    def check_disk(self, folder: Path, model: Transformer, options: PipelineOptions) -> None:
        """Raise a VitcodError if the disk of ``folder``, which need not be there yet, has no room for the files.

        Those of an earlier run make room, or are gone on with. What is temporary isn't counted.
        """
        there = [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]  # nothing of others
        need = self.files(model, options) - sum(map(_size, there))
        check_space(folder, need, "--output-dir", "what is left to be written")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # gone just now
        return 0
