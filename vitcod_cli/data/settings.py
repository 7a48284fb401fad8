"""Which images: the options that all commands share. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcod_cli.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings, panel="Data"):
    """Where images come from and how they are read."""

    data_path: str | None = setting(
        None,
        "Folder of the data set; for the ImageNet layout, the one that holds train/ and val/.",
        metavar="FOLDER",
        show_default=False,
    )
    dataset: str = setting(
        "",
        "Kind of data set: left out, the ImageNet layout; images (any folder of images, without labels); digits "
        "(comes with vitcod); CIFAR10, CIFAR100, INAT, INAT19 as in DeiT; or any timm name, such as "
        "torch/cifar10, hfds/NAME, wds/NAME.",
        metavar="NAME",
        show_default="ImageNet layout",
        aliases=("--data-set",),
    )
    train_split: str = setting("train", "Name of the training split.", metavar="NAME")
    val_split: str = setting(
        "validation",
        "Name of the validation split (a folder may also be called val).",
        metavar="NAME",
    )
    val_images: int | None = setting(
        None,
        "Validation images to evaluate on, spread evenly over the split (of a stream, the first ones).",
        metavar="N",
        minimum=1,
        show_default="all",
    )
    class_map: str | None = setting(
        None,
        "Text file of class names, one a line, whose line numbers are the labels; or JSON, {name: label}.",
        metavar="FILE",
        show_default=False,
    )
    inat_category: Literal["name", "genus", "family", "supercategory", "order", "class", "phylum", "kingdom"] = (
        setting("name", "What iNaturalist images are classified by.")
    )
    download: bool = setting(False, "Download a data set that isn't there (torch/, hfds/, hfids/, tfds/).")
    workers: int | None = setting(
        None,
        "Processes that read images, for each process that computes.",
        minimum=0,
        maximum=1024,
        show_default="by core count",
        aliases=("--num-workers",),
    )
    crop_pct: float | None = setting(
        None,
        "Share of the resized image that the evaluation crop takes.",
        minimum=0.1,
        maximum=1.0,
        show_default="224/256; 1 up to 32 pixels",
    )
    interpolation: Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"] = setting(
        "bicubic", "How evaluation images are resized."
    )
    max_bad_images: int = setting(
        10,
        "Images that may turn out unreadable, each with a warning, before the run stops.",
        minimum=0,
    )
