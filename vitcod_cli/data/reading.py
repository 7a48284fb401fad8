"""How images are read: one record that every kind of data set makes its reader from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitcod_cli.data.preprocess import Preprocess, Transform
from vitcod_cli.reporting import Reporter

Batches = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Images [B, C, H, W], targets int64 [B] and indices int64 [B] of each batch."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader is to do.

    Attributes:
        transform: of each image.
        random: whether ``transform`` draws; then each image has a seed of its own, made from ``seed``.
        batch_size: images of a batch in this process.
        workers: processes that read; None: by the number of cores.
        device: where the images go.
        training: shuffled epochs of full batches, in which another image takes the place of an unreadable one;
            else one pass, in order, without the unreadable.
        repeats: how often each image is shown in a row, in training.
        draw: another number draws another variant of the same images.
        raw: leave the images as the workers made them: uint8 where nothing has normalised them.
    """

    preprocess: Preprocess
    transform: Transform
    batch_size: int
    workers: int | None
    device: torch.device
    seed: int = 0
    random: bool = False
    training: bool = False
    repeats: int = 1
    draw: int = 0
    raw: bool = False
    reporter: Reporter | None = None


class Reader(Protocol):
    """Reads this process's share of a data set.

    Attributes:
        num_images: of one pass, unreadable ones included; 0 where the data set doesn't say.
        steps: batches of a training epoch, the same in every process.
    """

    num_images: int
    steps: int

    def one_pass(self) -> Batches:
        """Every image of this process once, in order."""

    def epoch(self, epoch: int, start: int) -> Batches:
        """The batches ``start``, ... of a training epoch."""

    def sample(self, count: int) -> Batches:
        """This process's share of ``count`` images of the whole data set, the same whatever their number is."""
