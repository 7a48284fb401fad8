from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import CPU, MEDIUM, Numbered, process, write_images
from torch import Tensor

from vitcod_cli import distributed
from vitcod_cli.data import calibration
from vitcod_cli.data.calibration import CalibrationImages, calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter


class Listener(SilentReporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


def read(data: ImageData, count: int, **options: object) -> CalibrationImages:
    return calibration_images(data, MEDIUM, count, **{"workers": 0, "device": CPU, "seed": 0, **options})


def whole(images: CalibrationImages) -> Tensor:
    return torch.cat(list(images.batches(5)))


def numbers(images: Tensor) -> list[int]:
    """Which pictures of ``Numbered`` these are."""
    red = images[:, 0, 0, 0] * MEDIUM.std[0] + MEDIUM.mean[0]
    return [round(float(value) * 255) for value in red]


def test_drawn_from_the_whole_data_set_by_seed() -> None:
    drawn = [numbers(whole(read(Numbered(200), 40, seed=seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 40
    assert max(drawn[0]) > 150
    assert min(drawn[0]) < 50


@pytest.mark.parametrize("crops", ["center", "random"])
def test_processes_share_the_pictures_of_one(tmp_path: Path, crops: str) -> None:
    write_images(tmp_path, {"train/a": 11}, size=(60, 50))
    data = open_dataset(DataSettings(data_path=str(tmp_path)), "train", num_classes=None)
    alone = whole(read(data, 11, crops=crops))
    parts = []
    for rank in range(2):
        with process(rank, 2):
            parts.append(whole(read(data, 11, crops=crops, workers=rank)))
    assert torch.equal(alone[0::2], parts[0])
    assert torch.equal(alone[1::2], parts[1])


def test_center_crops_are_those_of_evaluation() -> None:
    ((images, _),) = eval_loader(Numbered(9), MEDIUM, batch_size=9, workers=0, device=CPU)
    calibration = whole(read(Numbered(9), 9))
    assert torch.equal(calibration[torch.tensor(numbers(calibration)).argsort()], images)


def test_kept_as_bytes_and_given_as_floats() -> None:
    images = read(Numbered(7), 7)
    assert images._images.dtype == torch.uint8
    assert images._images.nbytes == 7 * 3 * 48 * 48
    batch = images.tensor(torch.tensor([4, 0]))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, whole(images)[[4, 0]])


def test_shuffled_by_a_generator() -> None:
    images = read(Numbered(13), 13)
    orders = [
        numbers(torch.cat(list(images.batches(4, generator=torch.Generator().manual_seed(seed)))))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(13))


def test_fewer_than_asked_for_are_all_used_and_said() -> None:
    reporter = Listener()
    images = read(Numbered(5), 8, reporter=reporter)
    assert len(images) == images.num_images == 5
    assert reporter.lines == ["Calibration uses 5 images: there are no more (8 were asked for)."]


def test_random_crops_differ_from_the_centre_and_repeat(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 4}, size=(90, 80))
    data = open_dataset(DataSettings(data_path=str(tmp_path)), "train", num_classes=None)
    first, again, other = (whole(read(data, 4, crops="random", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, whole(read(data, 4)))


def test_other_crops_are_of_the_same_pictures_in_the_same_order(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 9}, size=(60, 50))
    data = open_dataset(DataSettings(data_path=str(tmp_path)), "train", num_classes=None)
    center = read(data, 5)
    random = [read(data, 5, crops="random", draw=draw) for draw in (1, 1, 2)]
    assert torch.equal(whole(random[0]), whole(random[1]))
    assert not torch.equal(whole(random[0]), whole(random[2]))

    together = center.with_crops([random[0], random[2]])
    assert (len(together), together.num_images, together.crops) == (15, 5, 3)
    assert torch.equal(together.tensor(slice(0, 5)), whole(center))
    assert torch.equal(together.tensor(slice(10, 15)), whole(random[2]))
    assert torch.equal(whole(together.first_crops()), whole(center))

    numbered = read(Numbered(200), 40)
    assert numbers(whole(read(Numbered(200), 40, crops="random", draw=3))) == numbers(whole(numbered))


def test_the_first_images_of_all_processes_are_shared_like_all(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = read(Numbered(200), 10)
    few = everything.with_crops([everything]).first(4)
    assert (numbers(whole(few)), few.num_images, few.crops) == (numbers(whole(everything))[:4], 4, 1)
    assert len(everything.first(11)) == 10
    shares = []
    pixels = everything._images
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 3)
        mine = CalibrationImages(pixels[rank::3], MEDIUM, CPU, 10)
        shares += numbers(whole(mine.first(4)))
    assert sorted(shares) == sorted(numbers(whole(few)))


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_are_enough(count: int) -> None:
    assert len(read(Numbered(200), count)) == len(read(Numbered(count), 200)) == count


def test_none_at_all_if_none_are_asked_for() -> None:
    images = read(Numbered(5), 0)
    assert (len(images), images.num_images, list(images.batches(4))) == (0, 0, [])


def test_not_one_readable_image_is_told() -> None:
    with pytest.raises(VitcodError, match="0 readable training images are too few"):
        read(Numbered(3, bad=range(3)), 3)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_without_an_image_stops_all(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Left to itself it would wait for the others, or they for it."""
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [1, 1, 0])
    with process(rank, 3), pytest.raises(VitcodError, match="2 readable training images are too few for 3 proc"):
        read(Numbered(2), 8)


def test_more_than_memory_holds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "available_memory", lambda: 10**6)
    with pytest.raises(VitcodError, match=r"--calibrate-images: 1000 images need .* take fewer"):
        read(Numbered(2000), 1000)
