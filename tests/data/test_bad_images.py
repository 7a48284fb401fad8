from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from pictures import CPU, MEDIUM, Numbered, write_images

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.calibration import calibration_images
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.loaders import eval_loader, train_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

PLAIN = AugmentationSettings(no_aug=True)


def damaged_folder(root: Path, **options: int) -> ImageData:
    """Twelve pictures, of which five are broken, each in its own way."""
    write_images(root, {"train/a": 6, "train/b": 6}, size=(40, 40))
    folder = root / "train" / "a"
    whole = (folder / "0.jpg").read_bytes()
    (folder / "0.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "1.jpg").write_bytes(b"")
    (folder / "2.jpg").write_bytes(b"<html>404 not found</html>")
    (folder / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 50)
    (folder / "3.jpg").unlink()
    (root / "train" / "b" / "5.jpg").write_bytes(whole[:-3000] + bytes(100))
    return open_dataset(DataSettings(data_path=str(root), **options), "train", num_classes=None)


def refusal(loader: Iterable[object]) -> str:
    """What is raised in words; the exception itself would keep the workers alive until the garbage collection."""
    try:
        list(loader)
    except VitcodError as error:
        return str(error)
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_them_out_and_says_so(tmp_path: Path, workers: int) -> None:
    data, reporter = damaged_folder(tmp_path), SilentReporter()
    loader = eval_loader(data, MEDIUM, batch_size=3, workers=workers, device=CPU, reporter=reporter)
    for _ in range(2):
        assert sum(len(targets) for _, targets in loader) == 7
    assert len(reporter.warnings) == 5, "each is told once, whatever the number of passes"
    for name in ("a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.png", "b/5.jpg"):
        assert sum(name in warning and "left out" in warning for warning in reporter.warnings) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_training_replaces_them_alike(workers: int) -> None:
    """Index 4 and 5 can't be read: 6 takes the place of both, with the label of 6."""
    data, reporter = Numbered(9, bad=(4, 5)), SilentReporter()
    loader = train_loader(
        data, MEDIUM, PLAIN, batch_size=9, workers=workers, device=CPU, seed=0, reporter=reporter
    )
    _, targets, indices = next(iter(loader))
    assert sorted(targets.tolist()) == [0, 1, 2, 3, 6, 6, 6, 7, 8]
    assert torch.equal(targets, indices)
    assert sorted(reporter.warnings) == [
        "Can't read image 4 (image file is truncated); another takes its place.",
        "Can't read image 5 (image file is truncated); another takes its place.",
    ]


def test_the_last_image_is_replaced_by_the_first() -> None:
    loader = train_loader(Numbered(4, bad=(3,)), MEDIUM, PLAIN, batch_size=4, workers=0, device=CPU, seed=0)
    assert sorted(next(iter(loader))[1].tolist()) == [0, 0, 1, 2]


def test_replacement_does_not_disturb_the_other_images() -> None:
    settings = AugmentationSettings(repeated_aug=False)
    batches = [
        next(iter(train_loader(Numbered(9, bad), MEDIUM, settings, batch_size=9, workers=0, device=CPU, seed=0)))
        for bad in ((), (4,))
    ]
    others = batches[0][2] != 4
    assert others.sum() == 8
    assert torch.equal(batches[0][0][others], batches[1][0][others])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_too_many_stop_the_run_with_their_names(tmp_path: Path, workers: int, training: bool) -> None:
    data = damaged_folder(tmp_path, max_bad_images=4)
    options = {"batch_size": 3, "workers": workers, "device": CPU}
    loader = (
        train_loader(data, MEDIUM, PLAIN, seed=0, **options) if training else eval_loader(data, MEDIUM, **options)
    )
    message = refusal(loader)
    assert "More than --max-bad-images 4 images can't be read" in message
    assert message.count(str(tmp_path)) == 5


def test_none_are_put_up_with_when_zero_are_allowed() -> None:
    data = Numbered(5, bad=(2,), max_bad_images=0)
    with pytest.raises(VitcodError, match=r"--max-bad-images 0 .*image 2 \(image file is truncated\)"):
        list(eval_loader(data, MEDIUM, batch_size=5, workers=0, device=CPU))


def test_a_folder_of_nothing_else_ends(tmp_path: Path) -> None:
    data = Numbered(30, bad=range(30))
    with pytest.raises(VitcodError, match="and 6 more"):
        list(train_loader(data, MEDIUM, PLAIN, batch_size=5, workers=0, device=CPU, seed=0))
    data = Numbered(3, bad=range(3))
    with pytest.raises(VitcodError, match="not one of them"):
        list(train_loader(data, MEDIUM, PLAIN, batch_size=3, workers=0, device=CPU, seed=0))


def test_a_batch_without_a_readable_picture_is_left_out() -> None:
    loader = eval_loader(Numbered(6, bad=(2, 3)), MEDIUM, batch_size=2, workers=0, device=CPU)
    assert [targets.tolist() for _, targets in loader] == [[0, 1], [4, 5]]


def test_calibration_leaves_them_out() -> None:
    images = calibration_images(Numbered(8, bad=(2,)), MEDIUM, 8, workers=0, device=CPU, seed=0)
    assert len(images) == images.num_images == 7


def test_without_a_reporter_logging_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        list(eval_loader(Numbered(3, bad=(1,)), MEDIUM, batch_size=3, workers=0, device=CPU))
    assert "Can't read image 1" in caplog.text


def test_processes_other_than_the_first_tell_of_theirs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    reporter = SilentReporter()
    with caplog.at_level(logging.WARNING):
        list(eval_loader(Numbered(4, bad=(0, 1)), MEDIUM, batch_size=3, workers=0, device=CPU, reporter=reporter))
    assert reporter.warnings == []
    assert caplog.messages == ["Can't read image 1 (image file is truncated); it is left out."]


def test_defects_of_ours_are_not_taken_for_bad_images() -> None:
    class Defect(Numbered):
        def load(self, index: int):
            raise TypeError("a defect")

    with pytest.raises(TypeError, match="a defect"):
        list(eval_loader(Defect(3), MEDIUM, batch_size=3, workers=0, device=CPU))
