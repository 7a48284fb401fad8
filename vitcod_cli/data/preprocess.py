"""From an image to the numbers that a model takes: resize, crop, vary, normalise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import ResizeKeepRatio
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.decode import check_pixels
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError

Transform = Callable[[Image.Image], Tensor]

_PUBLISHED_CROP_PCT = 224 / 256
_SMALL = 32
"""Up to this size DeiT neither enlarges before the evaluation crop nor crops parts for training."""


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its input.

    Attributes:
        input_size: (channels, height, width).
        mean, std: of pixel values in 0..1, one for each channel.
        interpolation: how the evaluation transform resizes.
        crop_pct: share of the resized image that the evaluation crop takes.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = _PUBLISHED_CROP_PCT

    @property
    def mode(self) -> str:
        """The mode that images are converted to."""
        return "L" if self.input_size[0] == 1 else "RGB"

    def eval_transform(self) -> Transform:
        """Resize the short side to size / crop_pct, crop the centre: an image to uint8 [C, H, W]."""
        transform: Transform = create_transform(
            self.input_size,
            is_training=False,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            normalize=False,
        )
        return transform

    def check_size(self, width: int, height: int) -> None:
        """Refuse images so narrow that their other side would become gigantic once they are resized.

        Raises:
            UnreadableImageError: if the resized image had more pixels than an image may have.
        """
        target_height, target_width = (math.floor(side / self.crop_pct) for side in self.input_size[1:])
        scale = max(target_width / width, target_height / height)
        check_pixels(round(width * scale), round(height * scale), f" when {width:,} x {height:,} are resized")

    def train_transform(self, augmentation: AugmentationSettings) -> Transform:
        """DeiT's training transform.

        Gives uint8 [C, H, W], or with random erasing, whose noise lives in normalised space,
        normalised float32. :meth:`to_device` takes both.

        Raises:
            VitcodError: if timm doesn't know the AutoAugment policy.
        """
        if augmentation.no_aug:
            return self.eval_transform()
        try:
            transform = create_transform(
                self.input_size,
                is_training=True,
                scale=augmentation.scale,
                ratio=augmentation.ratio,
                hflip=augmentation.hflip,
                color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]
                auto_augment=augmentation.policy,
                interpolation=augmentation.train_interpolation,
                mean=self.mean,
                std=self.std,
                re_prob=augmentation.reprob,
                re_mode=augmentation.remode,
                re_count=augmentation.recount,
                normalize=augmentation.reprob > 0,
            )
        except (AssertionError, ValueError, KeyError, IndexError, NotImplementedError) as error:
            raise VitcodError(
                f"timm does not know the policy --aa {augmentation.aa}; use one such as "
                "rand-m9-mstd0.5-inc1, 3a or none."
            ) from error
        _mend_posterize(transform)
        size = self.input_size[1:]
        if max(size) <= _SMALL:
            transform.transforms[0] = _ShiftedCrop(size, augmentation.train_interpolation)
        return transform  # type: ignore[no-any-return]

    def random_crop_transform(self) -> Transform:
        """A random crop and flip, and no more: an image to uint8 [C, H, W]."""
        plain = AugmentationSettings(aa="none", color_jitter=0.0, reprob=0.0, scale=(0.25, 1.0))
        return self.train_transform(plain)

    def to_device(self, images: Tensor, device: torch.device) -> Tensor:
        """A batch as the model takes it: normalised float32 on ``device``.

        uint8 images travel as bytes and are normalised there; float images are normalised already.
        """
        images = images.to(device, non_blocking=True)
        if images.is_floating_point():
            return images
        mean, std = self.byte_figures(device)
        return images.float().sub_(mean).div_(std)

    def byte_figures(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of pixel values in 0..255, float32 [1, C, 1, 1] on ``device``."""
        return _figures(self.mean, self.std, device)


@lru_cache(maxsize=8)
def _figures(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of bytes on the device, float32 [1, C, 1, 1]; kept, for copying them waits."""
    mean_, std_ = (torch.tensor(values, device=device).mul_(255).view(1, -1, 1, 1) for values in (mean, std))
    return mean_, std_


class _ShiftedCrop:
    """A small image, resized to ``size`` (height, width), moved by up to 4 pixels and filled up with black.

    What DeiT has in place of random resized crops for inputs of up to 32 pixels (torchvision's
    ``RandomCrop(size, padding=4)``).
    """

    _PADDING = 4

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self._resize = ResizeKeepRatio(size, interpolation=interpolation)  # type: ignore[no-untyped-call]
        self._height, self._width = size

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size != (self._width, self._height):
            image = self._resize(image)
        left = random.randint(-self._PADDING, image.width - self._width + self._PADDING)
        top = random.randint(-self._PADDING, image.height - self._height + self._PADDING)
        return image.crop((left, top, left + self._width, top + self._height))


def _mend_posterize(transform: transforms.Compose) -> None:
    """Let timm's policies posterize to 0 bits, which is black; Pillow used to, but 13 raises a ValueError."""
    for step in transform.transforms:
        operations = [*getattr(step, "ops", ()), *(op for steps in getattr(step, "policy", ()) for op in steps)]
        for operation in operations:
            if getattr(operation, "aug_fn", None) is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    if bits > 0:
        return auto_augment.posterize(image, bits)  # type: ignore[no-any-return, no-untyped-call]
    return Image.new(image.mode, image.size)


def preprocess_for(
    pretrained_cfg: Mapping[str, Any], input_size: tuple[int, int, int], settings: DataSettings
) -> Preprocess:
    """What the model of ``pretrained_cfg`` (timm's) expects, at ``input_size`` (C, H, W).

    Mean and standard deviation are the model's own; a one-channel model of three-channel figures
    takes their average.

    Raises:
        VitcodError: if the model takes neither 1 nor 3 channels.
    """
    channels = input_size[0]
    if channels not in (1, 3):
        raise VitcodError(f"The model takes {channels} channels, but images have 3, or 1 as grey (in_chans=1).")
    crop_pct = settings.crop_pct
    if crop_pct is None:
        crop_pct = 1.0 if max(input_size[1:]) <= _SMALL else _PUBLISHED_CROP_PCT
    return Preprocess(
        input_size=input_size,
        mean=_per_channel(pretrained_cfg.get("mean") or IMAGENET_DEFAULT_MEAN, channels),
        std=_per_channel(pretrained_cfg.get("std") or IMAGENET_DEFAULT_STD, channels),
        interpolation=settings.interpolation,
        crop_pct=crop_pct,
    )


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    return values if len(values) == channels else (math.fsum(values) / len(values),) * channels
