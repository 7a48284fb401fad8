"""Checkpoints: ours, the published code's, timm's. torch is imported inside the functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitcod_cli.artifacts.clues import class_count_of, img_size_of, svd_type_of
from vitcod_cli.artifacts.describe import describe
from vitcod_cli.artifacts.download import download, is_url
from vitcod_cli.artifacts.files import (
    CHECKPOINT,
    checked_kind,
    checked_path,
    open_safetensors,
    sha256_of,
    write_safetensors,
)
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.pickled import load_pickled
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import Reporter, SilentReporter

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors and what the file says of them.

    Attributes:
        state_dict: timm's names, the auto-encoder's names, and ``blocks.{i}.attn.keep`` when sparse.
        config: the model as the file describes it, or None when it doesn't. The name in a published
            file may be one that timm doesn't know.
        layout: whose format the file has.
        source: the path or address it was read from.
        sha256: of the file.
        info: the rest of what the file says: for ours the metadata, for a published one its ``args``
            and ``epoch``.
    """

    state_dict: dict[str, Tensor]
    config: ModelConfig | None
    layout: Literal["vitcod", "published", "timm"]
    source: str
    sha256: str
    info: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(source: str | os.PathLike[str], flag: str, reporter: Reporter | None = None) -> Checkpoint:
    """Read a checkpoint from a path or an ``https://`` address.

    Raises:
        VitcodError: if it can't be read, is something else, or holds Python objects that are not
            plain data.
    """
    source = os.fspath(source)
    path = download(source, flag, reporter or SilentReporter()) if is_url(source) else checked_path(source, flag)
    what = describe(path)
    if what is not None and what.suffix == ".safetensors":
        return _read_safetensors(path, source, flag)
    if what is not None and what.suffix != ".pth":
        raise VitcodError(f"{flag} {source} is not a checkpoint: it seems to be {what}.")
    if path.suffix == ".safetensors":  # it has the name and not the content: let the reader say why
        with open_safetensors(path, flag=flag):
            pass
    return _read_pickled(path, source, flag)


def _read_safetensors(path: Path, source: str, flag: str) -> Checkpoint:
    with open_safetensors(path, flag=flag, framework="pt") as (handle, metadata):
        config, info = None, metadata
        if metadata:
            info = checked_kind(metadata, path, kind=CHECKPOINT, flag=flag)
            try:
                config = ModelConfig.from_dict(info.pop("model_config"))
            except (KeyError, TypeError, ValueError) as error:
                message = f"{flag} {source} doesn't say which model it holds ({error!r}); make it again."
                raise VitcodError(message) from error
        state_dict = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    layout: Literal["vitcod", "timm"] = "vitcod" if metadata else "timm"
    return Checkpoint(_unwrapped(state_dict), config, layout, source, sha256_of(path), info)


def _read_pickled(path: Path, source: str, flag: str) -> Checkpoint:
    import torch

    content = load_pickled(path, source, flag)
    layout: Literal["published", "timm"] = "timm"
    info: dict[str, Any] = {}
    state_dict = content
    if isinstance(content, Mapping):
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                state_dict, layout = content[key], "published"
                info = {name: content[name] for name in ("epoch",) if name in content}
                info["args"] = _plain_args(content.get("args"))
                break
    if not (
        isinstance(state_dict, Mapping)
        and state_dict
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state_dict.items())
    ):
        raise VitcodError(f"{flag} {source} holds no model weights; give a checkpoint of a timm or DeiT model.")
    weights = _unwrapped(state_dict)
    config = _published_config(info.get("args") or {}, weights)
    return Checkpoint(weights, config, layout, source, sha256_of(path), info)


def _plain_args(args: Any) -> dict[str, Any]:
    """An ``argparse.Namespace`` (or a dictionary) as a dictionary."""
    if args is None:
        return {}
    return dict(args) if isinstance(args, Mapping) else dict(vars(args))


def _published_config(args: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ModelConfig | None:
    """The model that a published checkpoint's ``args`` name, its shape read off the tensors."""
    name = args.get("model")
    size = args.get("input_size")
    img_size = (size, size) if isinstance(size, int) else img_size_of(state_dict)
    if not isinstance(name, str) or not name or img_size is None:
        return None
    return ModelConfig(
        model=name,
        num_classes=class_count_of(state_dict),
        img_size=img_size,
        svd_type=svd_type_of(state_dict),
    )


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every name."""
    plain = dict(state_dict)
    while prefix := next((p for p in _WRAPPERS if plain and all(name.startswith(p) for name in plain)), None):
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def write_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    config: ModelConfig,
    info: Mapping[str, Any],
) -> None:
    """Write a checkpoint of ours atomically.

    Raises:
        VitcodError: if the file can't be written; what was there is untouched.
    """
    metadata = {"model_config": config.to_dict(), **info}
    write_safetensors(path, _unwrapped(state_dict), CHECKPOINT, metadata)
