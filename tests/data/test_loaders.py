from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CPU, MEDIUM, Numbered, process, write_images
from torch import Tensor

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import TrainLoader, eval_loader, train_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.reporting import SilentReporter

Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def files(tmp_path: Path) -> ImageData:
    """13 random JPEGs of two classes."""
    write_images(tmp_path, {"train/a": 6, "train/b": 7}, size=(60, 50))
    return open_dataset(DataSettings(data_path=str(tmp_path)), "train", num_classes=None)


def loader_of(data: ImageData, batch_size: int = 4, **options: object) -> TrainLoader:
    arguments = {"workers": 0, "device": CPU, "seed": 3, **options}
    return train_loader(data, MEDIUM, AugmentationSettings(), batch_size=batch_size, **arguments)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for c, d in zip(a, b, strict=True) for x, y in zip(c, d, strict=True)
    )


@pytest.mark.parametrize("length", [1, 2, 12, 13])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_evaluation_shows_every_image_once(length: int, world: int, batch_size: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        with process(rank, world):
            loader = eval_loader(Numbered(length), MEDIUM, batch_size=batch_size, workers=0, device=CPU)
        batches = list(loader)
        mine = [int(target) for _, targets in batches for target in targets]
        assert len(batches) == len(loader)
        assert len(mine) == loader.num_images
        assert mine == sorted(mine)
        seen += mine
    assert sorted(seen) == list(range(length))


def test_images_and_targets_belong_together() -> None:
    for images, targets in eval_loader(Numbered(13), MEDIUM, batch_size=4, workers=2, device=CPU):
        mean, std = torch.tensor(MEDIUM.mean), torch.tensor(MEDIUM.std)
        pixels = (images[:, :, 10, 10] * std + mean) * 255
        assert torch.equal(pixels.round().long(), targets[:, None].expand(-1, 3))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(files: ImageData, workers: int) -> None:
    plain, parallel = loader_of(files), loader_of(files, workers=workers)
    for epoch in (0, 1):
        plain.set_epoch(epoch)
        parallel.set_epoch(epoch)
        assert same(list(plain), list(parallel))
    parallel.set_epoch(1, 2)
    plain.set_epoch(1)
    assert same(list(plain)[2:], list(parallel)), "a second pass of the same workers, from the middle"


def test_epochs_differ_and_come_again(files: ImageData) -> None:
    loader = loader_of(files)
    first = list(loader)
    loader.set_epoch(1)
    second = list(loader)
    loader.set_epoch(0)
    assert same(first, list(loader))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_pass_leaves_no_trace(files: ImageData, workers: int) -> None:
    loader = loader_of(files, workers=workers)
    expected = list(loader)
    next(iter(loader))
    assert same(expected, list(loader))


def test_two_processes_see_the_batches_of_one(files: ImageData) -> None:
    alone, both = list(loader_of(files, 4)), []
    for rank in range(2):
        with process(rank, 2):
            both.append(list(loader_of(files, 2)))
    assert len(alone) == len(both[0]) == len(both[1]) == 3
    for whole, first, second in zip(alone, *both, strict=True):
        for entire, even, odd in zip(whole, first, second, strict=True):
            assert torch.equal(entire[0::2], even)
            assert torch.equal(entire[1::2], odd)


def test_repeated_augmentation_with_13_images(files: ImageData) -> None:
    batches = list(loader_of(files, 13))
    (images, targets, indices) = batches[0]
    assert sorted(Counter(indices.tolist()).values()) == [1, 3, 3, 3, 3]
    assert all(targets[i] == files.targets[indices[i]] for i in range(13))
    for index in set(indices.tolist()):
        shown = images[indices == index]
        assert len({picture.numpy().tobytes() for picture in shown}) == len(shown), "each repeat has its own draw"


def test_fewer_images_than_a_step_are_said(files: ImageData) -> None:
    reporter = SilentReporter()
    loader = loader_of(files, 16, reporter=reporter)
    assert len(loader) == 1
    assert reporter.warnings == [], "it doesn't matter where there is no epoch"
    for _ in range(2):
        assert [len(targets) for _, targets, _ in loader] == [16]
    assert reporter.warnings == [
        "There are only 13 training images for a global batch of 16: some are shown more than once in each step."
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_not_touched(files: ImageData, workers: int) -> None:
    """Drop-path and mixup of the main process must not depend on how images are read."""

    def state() -> tuple[object, bytes, bytes]:
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = state()
    loader = loader_of(files, workers=workers)
    for _ in loader:
        assert state() == before
    list(eval_loader(files, MEDIUM, batch_size=4, workers=workers, device=CPU))
    assert state() == before


def test_global_generators_do_not_matter(files: ImageData) -> None:
    loader = loader_of(files)
    first = list(loader)
    random.random(), np.random.random(), torch.rand(3)
    assert same(first, list(loader))


def test_training_transform_for_statistics(files: ImageData) -> None:
    def images(**options: object) -> Tensor:
        return torch.cat(
            [x for x, _ in eval_loader(files, MEDIUM, batch_size=5, workers=0, device=CPU, **options)]
        )

    drawn = images(transform="train", seed=1)
    assert drawn.shape == (13, 3, 48, 48)
    assert torch.equal(drawn, images(transform="train", seed=1))
    assert not torch.equal(drawn, images(transform="train", seed=2))
    parts = []
    for rank in range(2):
        with process(rank, 2):
            parts.append(images(transform="train", seed=1))
    assert torch.equal(drawn[0::2], parts[0])
    assert torch.equal(drawn[1::2], parts[1])


def test_what_goes_to_the_workers_can_be_pickled(files: ImageData) -> None:
    """Where processes are not forked (macOS, Python 3.14) it must be."""
    reader = loader_of(files)._read.__self__
    again = pickle.loads(pickle.dumps(reader._loader.dataset))
    keys = np.array([[3, 17]])
    assert torch.equal(again.__getitems__(keys)[0].image, reader._loader.dataset.__getitems__(keys)[0].image)
