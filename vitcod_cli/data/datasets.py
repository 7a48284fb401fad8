"""Open a data set by name: ours, DeiT's, and all of timm's."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from timm.data.dataset_factory import create_dataset

from vitcod_cli import distributed
from vitcod_cli.data.digits import DigitImages
from vitcod_cli.data.folder import open_folder
from vitcod_cli.data.images import ImageData, SourceImages, warn
from vitcod_cli.data.inaturalist import open_inaturalist
from vitcod_cli.data.labels import read_class_map
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter

_FOLDER_NAMES = ("", "imnet", "imagenet", "folder")
_TORCHVISION_NAMES = {"cifar": "torch/cifar100", "cifar10": "torch/cifar10", "cifar100": "torch/cifar100"}
_INATURALIST_YEARS = {"inat": 2018, "inat18": 2018, "inat19": 2019}
_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow-datasets"}


def open_dataset(
    settings: DataSettings,
    split: Literal["train", "val"],
    *,
    num_classes: int | None,
    reporter: Reporter | None = None,
) -> ImageData:
    """One split of the data set that ``settings`` name.

    Args:
        num_classes: outputs of the model, or None if the data set shall decide. Class folders that
            are ImageNet wnids get ImageNet's labels if it is 1000 or None.
        reporter: told of things that look odd; without one, logging is.

    Raises:
        VitcodError: if the data isn't there, isn't of that kind, needs a package, or has more
            classes than the model.
    """
    dataset = _open(settings, split, num_classes, reporter)
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
    settings: DataSettings, split: Literal["train", "val"], num_classes: int | None, reporter: Reporter | None
) -> ImageData:
    name = settings.dataset.lower()
    if name == "digits":
        return DigitImages(split, settings.max_bad_images)
    if name in _FOLDER_NAMES:
        return open_folder(settings, split, num_classes, reporter)
    if name in _INATURALIST_YEARS:
        return open_inaturalist(settings, split, _INATURALIST_YEARS[name])
    full = _TORCHVISION_NAMES.get(name, settings.dataset)
    prefix = full.partition("/")[0].lower() if "/" in full else ""
    if prefix in _PACKAGES:
        package = _PACKAGES[prefix]
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise VitcodError(f"--dataset {settings.dataset} needs another package: pip install {package}")
    elif prefix != "torch":
        raise VitcodError(
            f"--dataset {settings.dataset} is not known: leave it out for the ImageNet layout, or use digits, "
            "CIFAR10, CIFAR100, INAT, INAT19, or a timm name beginning with torch/, hfds/, hfids/, wds/ or tfds/."
        )
    if prefix in ("hfids", "wds", "tfds"):
        raise VitcodError(f"--dataset {settings.dataset}: streaming data sets are not supported yet.")
    return _open_source(full, settings, split, num_classes)


def _open_source(
    name: str, settings: DataSettings, split: Literal["train", "val"], num_classes: int | None
) -> ImageData:
    if settings.data_path is None and name.startswith("torch/"):
        raise VitcodError(f"--data-path is missing: give the folder that --dataset {settings.dataset} is in.")
    arguments: dict[str, Any] = {
        "root": settings.data_path,
        "split": settings.train_split if split == "train" else settings.val_split,
        "class_map": read_class_map(settings.class_map) if settings.class_map else None,
        "download": settings.download,
    }
    # One process of each machine downloads; the others find it there.
    first = distributed.local_rank() == 0
    if settings.download and not first:
        distributed.barrier()
    try:
        source = create_dataset(name, **arguments)
    except (AssertionError, RuntimeError, ValueError, OSError, KeyError) as error:
        hint = "" if settings.download else "; if it isn't there yet, add --download"
        raise VitcodError(f"Can't open --dataset {settings.dataset}: {error}{hint}") from error
    if settings.download and first:
        distributed.barrier()
    count = _count_classes(source) or num_classes
    if not count:
        raise VitcodError(f"--dataset {settings.dataset} doesn't say how many classes it has; give --num-classes.")
    return SourceImages(source, count, max_bad_images=settings.max_bad_images)


def _count_classes(source: Any) -> int | None:
    """The number of classes, as torchvision's data sets and timm's readers tell it."""
    reader = getattr(source, "reader", None)
    labels: dict[Any, int] | None = getattr(reader, "class_to_idx", None)
    if labels:
        return max(labels.values()) + 1
    for attribute in ("classes", "all_categories"):
        names = getattr(source, attribute, None)
        if names:
            return len(names)
    return None
