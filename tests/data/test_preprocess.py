from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CPU, MEDIUM, SMALL, Numbered, write_images
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.data.auto_augment import AugmentOp

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.order import seed_all
from vitcod_cli.data.preprocess import Preprocess, preprocess_for
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError

INCEPTION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def picture(width: int = 60, height: int = 45, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_as_timm(root: Path, preprocess: Preprocess, count: int) -> None:
    """Images and labels of our evaluation loader are those of timm's."""
    ours = open_dataset(DataSettings(data_path=str(root)), "val", num_classes=None)
    theirs = create_loader(
        create_dataset("", str(root), split="val"),
        preprocess.input_size,
        count,
        use_prefetcher=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        num_workers=0,
        persistent_workers=False,
    )
    expected, _ = next(iter(theirs))
    images, _ = next(iter(eval_loader(ours, preprocess, batch_size=count, workers=0, device=CPU)))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [224, 384, 70])
def test_evaluation_is_timms_on_real_pictures(shared: Path, size: int) -> None:
    preprocess = preprocess_for({}, (3, size, size), DataSettings())
    assert_as_timm(shared / "data" / "imagenet-sample", preprocess, 8)


@pytest.mark.parametrize("input_size", [(3, 48, 48), (3, 40, 64), (3, 32, 32)])
@pytest.mark.parametrize("cfg", [{}, INCEPTION])
def test_evaluation_is_timms_for_any_shape(tmp_path: Path, input_size: tuple[int, int, int], cfg: dict) -> None:
    write_images(tmp_path, {"val/wide": 2}, size=(50, 90))
    write_images(tmp_path, {"val/high": 2}, size=(90, 30))
    assert_as_timm(tmp_path, preprocess_for(cfg, input_size, DataSettings(interpolation="bilinear")), 4)


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (384, 438), (112, 128), (160, 182), (48, 54)])
def test_short_side_is_resized_as_deit_does(size: int, resized: int) -> None:
    assert resized == int(256 / 224 * size)
    transform = preprocess_for({}, (3, size, size), DataSettings()).eval_transform()
    assert transform.transforms[0].size == resized


def test_small_inputs_are_not_enlarged_before_the_crop() -> None:
    image = picture(32, 32)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(preprocess_for({}, (3, 32, 32), DataSettings()).eval_transform()(image), expected)
    assert preprocess_for({}, (3, 32, 32), DataSettings(crop_pct=0.9)).crop_pct == 0.9


def test_small_inputs_are_shifted_for_training() -> None:
    """Every 32-pixel window of the picture with 4 black pixels around it, and nothing else."""
    image = picture(32, 32)
    padded = torch.zeros(3, 40, 40, dtype=torch.uint8)
    padded[:, 4:36, 4:36] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    windows = {padded[:, y : y + 32, x : x + 32].numpy().tobytes() for x in range(9) for y in range(9)}
    transform = SMALL.train_transform(AugmentationSettings(aa="none", color_jitter=0, hflip=0, reprob=0))
    seen = set()
    for seed in range(600):
        seed_all(seed)
        seen.add(transform(image).contiguous().numpy().tobytes())
    assert seen <= windows
    assert len(seen) > 75


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
@pytest.mark.parametrize("shape", [(8, 8), (100, 20), (33, 32)])
def test_small_inputs_from_any_picture(shape: tuple[int, int], interpolation: str) -> None:
    transform = SMALL.train_transform(AugmentationSettings(train_interpolation=interpolation))
    assert transform(picture(*shape)).shape == (3, 32, 32)


def test_erasing_is_done_in_normalised_space() -> None:
    settings = AugmentationSettings(aa="none", color_jitter=0, hflip=0, scale=(1, 1), ratio=(1, 1), reprob=0)
    image = picture(48, 48)
    seed_all(0)
    plain = MEDIUM.to_device(MEDIUM.train_transform(settings)(image)[None], CPU)
    seed_all(0)
    erased = MEDIUM.to_device(MEDIUM.train_transform(settings.changed(reprob=1.0))(image)[None], CPU)
    assert plain.dtype == erased.dtype == torch.float32
    changed = ((plain - erased).abs() > 1e-5).any(dim=1)
    assert 0.01 < changed.float().mean() < 0.4
    assert erased[changed[:, None].expand_as(erased)].std() == pytest.approx(1, abs=0.2)


def test_no_aug_is_the_evaluation_transform() -> None:
    transform = MEDIUM.train_transform(AugmentationSettings(no_aug=True))
    assert torch.equal(transform(picture()), MEDIUM.eval_transform()(picture()))


def test_posterize_to_zero_bits_is_black() -> None:
    transform = MEDIUM.train_transform(AugmentationSettings(aa="rand-m10-n2-inc1", reprob=0))
    operations = [op for op in transform.transforms[2].ops if op.name == "PosterizeIncreasing"]
    assert len(operations) == 1
    operations[0].prob = 1.0
    assert operations[0](picture()).getextrema() == ((0, 0),) * 3
    operations[0].magnitude = 5
    assert operations[0](picture()).tobytes() == AugmentOp("PosterizeIncreasing", 1.0, 5)(picture()).tobytes()


@pytest.mark.parametrize(
    "aa", ["rand-m9-mstd0.5-inc1", "rand-m10-n9", "v0", "original", "3a", "augmix-m5-w2", "none"]
)
def test_policies_of_timm_run(aa: str) -> None:
    transform = MEDIUM.train_transform(AugmentationSettings(aa=aa))
    for seed in range(20):
        seed_all(seed)
        assert transform(picture(seed=seed)).shape == (3, 48, 48)


@pytest.mark.parametrize("aa", ["ranb-m9", "rand-q3", "autumn"])
def test_unknown_policy_is_refused_by_name(aa: str) -> None:
    with pytest.raises(VitcodError, match=f"--aa {aa}"):
        MEDIUM.train_transform(AugmentationSettings(aa=aa))


def test_one_channel_takes_the_average_of_the_models_figures() -> None:
    preprocess = preprocess_for({"mean": (0.2, 0.3, 0.4), "std": (0.1, 0.2, 0.3)}, (1, 48, 48), DataSettings())
    images, targets = next(iter(eval_loader(Numbered(5), preprocess, batch_size=5, workers=0, device=CPU)))
    assert images.shape == (5, 1, 48, 48)
    expected = (targets / 255 - 0.3) / 0.2
    torch.testing.assert_close(images[:, 0, 24, 24], expected.float(), rtol=0, atol=1e-5)


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(VitcodError, match="takes 4 channels"):
        preprocess_for({}, (4, 48, 48), DataSettings())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_mode_of_pictures_is_taken(tmp_path: Path, mode: str) -> None:
    image = (
        Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50))
        if mode == "I;16"
        else picture().convert(mode)
    )
    (tmp_path / "val" / "a").mkdir(parents=True)
    suffix = "jpg" if mode == "CMYK" else "png"
    image.save(tmp_path / "val" / "a" / f"0.{suffix}")
    assert_as_timm(tmp_path, MEDIUM, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"scale": (0.5, 0.1)},
            "--scale must be two numbers above 0, the lower first, both at most 1, not 0.5 0.1",
        ),
        ({"scale": (0.0, 1.0)}, "--scale"),
        ({"scale": (0.5, 2.0)}, "--scale"),
        ({"ratio": (2.0, 1.0)}, "--ratio must be two numbers above 0, the lower first, not 2 1"),
        ({"ratio": (float("nan"), 1.0)}, "--ratio"),
        ({"reprob": 1.5}, "--reprob must be between 0 and 1"),
    ],
)
def test_ranges_are_checked(options: dict, says: str) -> None:
    with pytest.raises(VitcodError, match=says):
        AugmentationSettings(**options)
