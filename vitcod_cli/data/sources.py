"""Data sets that torchvision and timm open: torch/, hfds/, hfids/, wds/ and tfds/."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from timm.data.dataset_factory import create_dataset

from vitcod_cli import distributed
from vitcod_cli.data.images import ImageData, SourceImages
from vitcod_cli.data.labels import read_class_map
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.data.shard_list import find_shards
from vitcod_cli.data.shards import open_shards
from vitcod_cli.data.streams import StreamImages
from vitcod_cli.errors import VitcodError

_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow-datasets"}
_STREAMS = ("hfids", "wds", "tfds")
PREFIXES = ("torch", *_PACKAGES)


def open_source(
    name: str, settings: DataSettings, split: Literal["train", "val"], num_classes: int | None
) -> ImageData:
    """What ``timm.data.create_dataset`` makes of ``name``.

    Raises:
        VitcodError: if a package, the data or the number of classes is missing.
    """
    prefix = name.partition("/")[0].lower()
    _check_arguments(prefix, settings)
    arguments: dict[str, Any] = {
        "root": settings.data_path,
        "split": settings.train_split if split == "train" else settings.val_split,
        "class_map": read_class_map(settings.class_map) if settings.class_map else None,
        "download": settings.download,
    }
    kwargs: dict[str, Any] = {"max_bad_images": settings.max_bad_images}
    with _errors_in_a_sentence(settings, prefix), _one_download(settings), _offline(prefix, settings):
        if prefix in _STREAMS:
            opener = partial(_open_stream, name, arguments)
            if prefix == "wds":
                flag = "--train-split" if split == "train" else "--val-split"
                opener = partial(open_shards, find_shards(str(settings.data_path), arguments["split"], flag))
            source = opener(False, 1, 0)
            classes = _count_classes(source) or num_classes
            if classes:
                length = int(source.reader.num_samples or 0)
                return StreamImages(settings.dataset, opener, length, classes, **kwargs)
        else:
            source = create_dataset(name, **arguments)
            classes = _count_classes(source) or num_classes
            if classes:
                return SourceImages(source, classes, **kwargs)
    raise VitcodError(f"--dataset {settings.dataset} doesn't say how many classes it has; give --num-classes.")


def _open_stream(name: str, arguments: dict[str, Any], training: bool, batch_size: int, seed: int) -> Any:
    return create_dataset(name, **arguments, is_training=training, batch_size=batch_size, seed=seed)


def _check_arguments(prefix: str, settings: DataSettings) -> None:
    name = settings.dataset
    if prefix in _PACKAGES:
        package = _PACKAGES[prefix]
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise VitcodError(f"--dataset {name} needs another package: pip install {package}")
    if settings.data_path is None and prefix in ("torch", "wds"):
        raise VitcodError(f"--data-path is missing: give the folder that --dataset {name} is in.")
    if settings.class_map is not None and prefix in ("torch", "wds"):
        raise VitcodError(
            f"--class-map has no meaning for --dataset {name}, whose labels are fixed; leave it out."
        )


@contextmanager
def _errors_in_a_sentence(settings: DataSettings, prefix: str) -> Iterator[None]:
    try:
        yield
    except VitcodError:
        raise
    except Exception as error:  # every library has errors of its own
        what = f"--dataset {settings.dataset} can't be opened"
        where = f" in --data-path {settings.data_path}" if settings.data_path else ""
        if "download=True" in str(error) or not settings.download:
            raise VitcodError(
                f"{what}{where} ({_short(error)}); if it isn't there yet, add --download."
            ) from error
        raise VitcodError(f"{what}{where} ({_short(error)}); check the name and the folder.") from error


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" You can use download=True")[0].rstrip(".")


@contextmanager
def _one_download(settings: DataSettings) -> Iterator[None]:
    """With ``--download``, the first process of each machine goes ahead; the others find the files there."""
    first = distributed.local_rank() == 0
    if settings.download and not first:
        distributed.barrier()
    yield
    if settings.download and first:
        distributed.barrier()


@contextmanager
def _offline(prefix: str, settings: DataSettings) -> Iterator[None]:
    """Without ``--download``, keep hfds/ off the network (hfids/ is a stream from it by nature)."""
    if prefix != "hfds" or settings.download:
        yield
        return
    import datasets.config  # type: ignore[import-not-found, unused-ignore]
    import huggingface_hub.constants

    modules = [datasets.config, huggingface_hub.constants]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


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
