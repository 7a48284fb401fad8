from __future__ import annotations

import importlib.util
import io
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pictures import CPU, SMALL, process, write_images
from PIL import Image
from timm.data import dataset_factory

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.calibration import calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.loaders import eval_loader, train_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.streams import StreamImages
from vitcod_cli.errors import VitcodError


def write_mnist(root: Path, count: int) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        pixels = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        )
        labels = bytes(index % 10 for index in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)


def test_torchvision_sets_pass_through(tmp_path: Path) -> None:
    write_mnist(tmp_path, 7)
    data = open_dataset(DataSettings(dataset="torch/mnist", data_path=str(tmp_path)), "val", num_classes=10)
    assert (len(data), data.num_classes) == (7, 10)
    assert data.describe(3) == "image 3"
    images, targets = next(iter(eval_loader(data, SMALL, batch_size=7, workers=0, device=CPU)))
    assert images.shape == (7, 3, 32, 32)
    assert targets.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("name", "expected"), [("CIFAR", "cifar100"), ("CIFAR10", "cifar10"), ("CIFAR100", "cifar100")]
)
def test_deits_names_for_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    asked: list[dict[str, Any]] = []

    class Recorder:
        classes = ("a", "b")

        def __init__(self, **kwargs: Any) -> None:
            asked.append(kwargs)

        def __len__(self) -> int:
            return 1

    monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, expected, Recorder)
    for split in ("train", "val"):
        open_dataset(DataSettings(dataset=name, data_path=str(tmp_path)), split, num_classes=2)
    assert asked == [{"root": str(tmp_path), "train": train, "download": False} for train in (True, False)]


def test_data_that_is_not_there_names_download(tmp_path: Path) -> None:
    with pytest.raises(VitcodError, match=r"CIFAR10 can't be opened in --data-path .*add --download\.$") as error:
        open_dataset(DataSettings(dataset="CIFAR10", data_path=str(tmp_path)), "train", num_classes=10)
    assert "download=True" not in str(error.value)
    with pytest.raises(VitcodError, match="--data-path is missing"):
        open_dataset(DataSettings(dataset="CIFAR10"), "train", num_classes=10)


def test_class_map_is_never_ignored_in_silence(tmp_path: Path) -> None:
    for name in ("torch/cifar10", "digits", "INAT"):
        with pytest.raises(VitcodError, match="--class-map has no meaning"):
            open_dataset(DataSettings(dataset=name, data_path=str(tmp_path), class_map="x"), "val", num_classes=10)


@pytest.mark.parametrize(
    ("name", "package"), [("hfds/x", "datasets"), ("wds/x", "webdataset"), ("TFDS/x", "tensorflow-datasets")]
)
def test_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VitcodError, match=f"pip install {package}$"):
        open_dataset(DataSettings(dataset=name, data_path="."), "train", num_classes=10)
    assert capfd.readouterr().out == ""


def test_hugging_face_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_images(tmp_path / "data", {"train/cat": 3, "train/dog": 2, "validation/cat": 1, "validation/dog": 2})
    settings = DataSettings(dataset=f"hfds/{tmp_path / 'data'}", data_path=str(tmp_path / "cache"))
    data = open_dataset(settings, "val", num_classes=None)
    assert (len(data), data.num_classes) == (3, 2)
    loader = eval_loader(data, SMALL, batch_size=2, workers=0, device=CPU)
    assert sorted(int(target) for _, targets in loader for target in targets) == [0, 1, 1]
    with pytest.raises(VitcodError, match=r"hfds/nobody/nothing can't be opened .*--download"):
        open_dataset(settings.changed(dataset="hfds/nobody/nothing"), "val", num_classes=None)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """13 pictures in 3 unequal shards, labels 0..12."""
    pytest.importorskip("webdataset")
    index = 0
    for shard, count in enumerate((6, 5, 2)):
        with tarfile.open(tmp_path / f"x-val-{shard}.tar", "w") as tar:
            for _ in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (20, 24), (index, 0, 0)).save(buffer, "PNG")
                for suffix, content in (("png", buffer.getvalue()), ("cls", str(index).encode())):
                    info = tarfile.TarInfo(f"{index:03}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                index += 1
    return tmp_path


def stream_settings(shards: Path) -> DataSettings:
    names = "x-val-{0..2}.tar|13"
    return DataSettings(dataset="wds/x", data_path=str(shards), train_split=names, val_split=names)


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_counts_every_image_once(shards: Path, workers: int) -> None:
    data = open_dataset(stream_settings(shards), "val", num_classes=13)
    assert len(data) == 13
    seen = []
    for rank in range(2):
        with process(rank, 2):
            loader = eval_loader(data, SMALL, batch_size=4, workers=workers, device=CPU)
        seen += [int(target) for _, targets in loader for target in targets]
        assert loader.num_images == 7 - rank
    assert sorted(seen) == list(range(13))


def test_stream_trains_alike_again(shards: Path) -> None:
    data = open_dataset(stream_settings(shards), "train", num_classes=13)

    def batches(start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        loader = train_loader(data, SMALL, AugmentationSettings(), batch_size=4, workers=0, device=CPU, seed=1)
        loader.set_epoch(2, start)
        assert len(loader) == 4
        return [(images, targets) for images, targets, _ in loader]

    whole = batches()
    assert len(whole) == 4
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, batches(), strict=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], batches(3), strict=True))


def test_calibration_takes_the_first_of_a_stream(shards: Path) -> None:
    data = open_dataset(stream_settings(shards), "val", num_classes=13)
    images = calibration_images(data, SMALL, 5, workers=0, device=CPU, seed=0)
    red = images.tensor(slice(None))[:, 0, 0, 0]
    assert len(images) == 5
    assert torch.all(red.diff() > 0)


class Stream(torch.utils.data.IterableDataset[Any]):
    """What timm makes of a stream, as far as our reader asks for it: ten images in order."""

    def __init__(self, length: int) -> None:
        self.length, self.transform = length, None
        self.reader = SimpleNamespace(ds=None)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        pixels = np.random.default_rng(0).integers(0, 256, (10, 30, 40, 3), dtype=np.uint8)
        return iter([(Image.fromarray(image), index) for index, image in enumerate(pixels)])

    def set_loader_cfg(self, num_workers: int) -> None:
        """Nothing to plan."""

    def set_epoch(self, epoch: int) -> None:
        """The same in every epoch."""


def stream(length: int) -> StreamImages:
    return StreamImages("wds/x", lambda training, batch_size, seed: Stream(length), length, 10)


def test_every_draw_of_a_stream_has_crops_of_its_own() -> None:
    def crops(kind: Any, draw: int) -> torch.Tensor:
        images = calibration_images(stream(10), SMALL, 4, workers=0, device=CPU, seed=0, crops=kind, draw=draw)
        return images.tensor(slice(None))

    centre, first, again, second = crops("center", 0), crops("random", 1), crops("random", 1), crops("random", 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(centre, first)


def test_a_stream_without_a_count_is_not_trained_on() -> None:
    """An epoch needs an end; an evaluation finds it."""
    with pytest.raises(VitcodError, match=r"wds/x doesn't say how many images .*--train-split 'name-.*\|50000'"):
        train_loader(stream(0), SMALL, AugmentationSettings(), batch_size=2, workers=0, device=CPU, seed=0)
    stream(10).check_countable("--train-split")
    seen = [
        int(t)
        for _, targets in eval_loader(stream(0), SMALL, batch_size=4, workers=0, device=CPU)
        for t in targets
    ]
    assert seen == list(range(10))


def test_stream_without_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(VitcodError, match=r"--val-split validation is no split .*name the shards"):
        open_dataset(DataSettings(dataset="wds/x", data_path=str(tmp_path)), "val", num_classes=13)
