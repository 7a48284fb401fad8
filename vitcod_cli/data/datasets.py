"""Open a data set by name: ours, DeiT's, and all of timm's."""

from __future__ import annotations

from typing import Literal

from vitcod_cli.data.bad_images import warn
from vitcod_cli.data.digits import DigitImages
from vitcod_cli.data.folder import open_folder, open_pictures
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.inaturalist import open_inaturalist
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.sources import PREFIXES, open_source
from vitcod_cli.data.streams import StreamImages
from vitcod_cli.data.unlabelled import KIND
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_FOLDER_NAMES = ("", "imnet", "imagenet", "folder", "torch/folder", "torch/image_folder")
_TORCHVISION_NAMES = {"cifar": "torch/cifar100", "cifar10": "torch/cifar10", "cifar100": "torch/cifar100"}
_INATURALIST_YEARS = {"inat": 2018, "inat18": 2018, "inat19": 2019}


def open_dataset(
    settings: DataSettings,
    split: Literal["train", "val"],
    *,
    num_classes: int | None,
    train: ImageData | None = None,
    reporter: Reporter | None = None,
) -> ImageData:
    """One split of the data set that ``settings`` name.

    Args:
        num_classes: outputs of the model, or None if the data set shall decide. Class folders that
            are ImageNet wnids get ImageNet's labels if it is 1000 or None. Of a model without a head, 0: folders
            of images in any layout will do, for nobody looks at labels.
        train: the training split, where it is open already; its folder need not be walked again for the labels
            of the validation split.
        reporter: told of things that look odd; without one, logging is.

    Raises:
        VitcodError: if the data isn't there, isn't of that kind, needs a package, or has more
            classes than the model.
    """
    dataset = _open(settings, split, num_classes, train, reporter)
    if split == "val" and settings.val_images is not None:
        if isinstance(dataset, StreamImages):
            raise VitcodError(
                "--val-images means nothing to a stream, which is read from its start; leave it out."
            )
        dataset = dataset.evenly_spaced(settings.val_images)
    if not dataset.labelled:
        return dataset
    if num_classes and dataset.num_classes > num_classes:
        raise VitcodError(
            f"The {split} images have {dataset.num_classes} classes but the model has {num_classes} outputs; "
            f"give --num-classes {dataset.num_classes} for a new head, or --class-map for other labels."
        )
    if num_classes and dataset.num_classes < num_classes:
        warn(
            f"The {split} images have {dataset.num_classes} classes and the model has {num_classes} outputs; "
            "if their labels don't mean the same, give --class-map.",
            reporter,
        )
    return dataset


def _open(
    settings: DataSettings,
    split: Literal["train", "val"],
    num_classes: int | None,
    train: ImageData | None,
    reporter: Reporter | None,
) -> ImageData:
    name = settings.dataset.lower()
    if name in _FOLDER_NAMES:
        names = None if train is None else train.class_names or []
        return open_folder(settings, split, num_classes, reporter, names)
    full = _TORCHVISION_NAMES.get(name, settings.dataset)
    if "/" in full and full.partition("/")[0].lower() in PREFIXES:
        return open_source(full, settings, split, num_classes)
    if settings.class_map is not None:
        raise VitcodError(f"--class-map has no meaning for --dataset {settings.dataset}; leave it out.")
    if name == KIND:
        return open_pictures(settings, split, reporter)
    if name == "digits":
        return DigitImages(split, settings.max_bad_images)
    if name in _INATURALIST_YEARS:
        return open_inaturalist(settings, split, _INATURALIST_YEARS[name])
    raise VitcodError(
        f"--dataset {settings.dataset} is not known: leave it out for the ImageNet layout, or use images, "
        "digits, CIFAR10, CIFAR100, INAT, INAT19, or a timm name beginning with "
        f"{', '.join(p + '/' for p in PREFIXES)}."
    )
