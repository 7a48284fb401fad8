"""Checkpoints: ours, the published code's, timm's. torch is imported inside the functions."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitcod_cli.artifacts.architecture import check_ranks, class_count_of, img_size_of, svd_type_of
from vitcod_cli.artifacts.describe import CHECKPOINT, describe
from vitcod_cli.artifacts.download import download, is_url
from vitcod_cli.artifacts.files import checked_path, first_line, sha256_of
from vitcod_cli.artifacts.hub import fetch, is_hub
from vitcod_cli.artifacts.model_arguments import check_model_kwargs, is_count
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.pickled import load_pickled
from vitcod_cli.artifacts.published import plain
from vitcod_cli.artifacts.safetensors_file import checked_kind, open_safetensors, write_safetensors
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import QUIET, Reporter

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's

_MOST_LEFT_OUT = 20
"""Names of what was not read that are told."""

_EMA_OF = {"model": "model_ema", "state_dict": "state_dict_ema"}
"""Keys of the weights in DeiT's and the published code's files, and in timm's, with those of their average."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors and what the file says of them.

    Attributes:
        state_dict: timm's names, the auto-encoder's names, and ``blocks.{i}.attn.keep`` when sparse.
        config: the model as the file describes it, or None when it doesn't. The name in a published
            file may be one that timm doesn't know.
        layout: whose format the file has.
        source: the path or address it was read from.
        path: the local file; None for weights that timm got from the hub.
        info: the rest of what the file says: for ours the metadata, for a published one ``args`` (a
            dictionary), ``epoch`` and ``left_out`` (names of what was not read).
    """

    state_dict: dict[str, Tensor]
    config: ModelConfig | None
    layout: Literal["vitcod", "published", "timm"]
    source: str
    path: Path | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of the file, read when it is asked for; empty where there is none."""
        return "" if self.path is None else sha256_of(self.path)


def read_checkpoint(
    source: str | os.PathLike[str], flag: str, reporter: Reporter = QUIET, use_ema: bool | None = None
) -> Checkpoint:
    """Read a checkpoint from a path, an ``https://`` address or ``hf-hub:owner/name``.

    Args:
        use_ema: which weights of a file that holds both, the raw ones and their moving average (timm's and
            DeiT's training keep both); None takes the average, as timm does, and says so.

    Raises:
        VitcodError: if it can't be read, is something else, holds Python objects that are not
            plain data, or has no averaged weights and ``use_ema`` asks for them.
    """
    source = os.fspath(source)
    if is_hub(source):
        path = fetch(source, flag)
    else:
        path = download(source, flag, reporter) if is_url(source) else checked_path(source, flag)
    description = describe(path)
    if description is not None and description.container not in ("safetensors", "torch"):
        raise VitcodError(f"{flag} {source} is not a checkpoint: it seems to be {description}.")
    if (description is not None and description.container == "safetensors") or path.suffix == ".safetensors":
        if use_ema:
            raise VitcodError(_no_ema(flag, source))
        return _read_safetensors(path, source, flag)
    return _read_pickled(path, source, flag, reporter, use_ema)


def _no_ema(flag: str, source: str) -> str:
    return f"--use-ema: {flag} {source} holds no EMA weights beside its own; leave it out."


def _read_safetensors(path: Path, source: str, flag: str) -> Checkpoint:
    with open_safetensors(path, flag=flag, framework="pt") as (handle, metadata):
        config, info = None, metadata
        if metadata:
            config, info = _own_info(checked_kind(metadata, path, kind=CHECKPOINT, flag=flag), source, flag)
        state_dict = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    layout: Literal["vitcod", "timm"] = "vitcod" if metadata else "timm"
    return Checkpoint(_checked(state_dict, f"{flag} {source}"), config, layout, source, path, info)


def _own_info(info: dict[str, Any], source: str, flag: str) -> tuple[ModelConfig, dict[str, Any]]:
    """What a checkpoint of ours says of its model, and the rest."""
    try:
        config = ModelConfig.from_dict(info.pop("model_config", {}))
        args = info.get("args", {})
        if not isinstance(args, dict):
            raise ValueError("its args are no options")
        return config, {**info, **({"args": plain(args)} if args else {})}
    except ValueError as error:
        message = f"{flag} {source} doesn't say which model it holds ({first_line(error)}); make it again."
        raise VitcodError(message) from error


def _checked(state_dict: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The weights without the prefixes of wrappers, once they are known to be numbers in a shape."""
    import torch

    weights = _unwrapped(state_dict)
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = (
                "quantised"
                if tensor.is_quantized
                else f"{str(tensor.layout).rpartition('.')[2]} on {tensor.device}"
            )
            raise VitcodError(
                f"{where} holds {name[:100]} as a {kind} tensor; save its weights as plain tensors of float32."
            )
        # A view that repeats what is stored: a few bytes would fill the memory.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise VitcodError(
                f"{where} holds {name[:100]} as a view that repeats itself; save a copy of it (contiguous)."
            )
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights.values()
    }
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > 2 * sum(storages.values()):
        raise VitcodError(f"{where} holds the same weights under many names; save each of them once.")
    check_ranks(weights, where)
    return weights


def _read_pickled(path: Path, source: str, flag: str, reporter: Reporter, use_ema: bool | None) -> Checkpoint:
    content = load_pickled(path, source, flag)
    fields: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
    raw = next((key for key in _EMA_OF if isinstance(fields.get(key), Mapping)), None)
    ema = None if raw is None or fields.get(_EMA_OF[raw]) is None else _EMA_OF[raw]
    if use_ema and ema is None:
        raise VitcodError(_no_ema(flag, source))
    key = raw if ema is None or use_ema is False else ema
    if ema is not None:
        use = "raw weights are used (--use-ema takes the others)"
        if key == ema:
            use = "EMA weights are used (--no-use-ema takes the raw ones)"
        reporter.info(f"{source} holds EMA weights beside the raw ones: the {use}.")
    weights = content if key is None else fields[key]
    if not _is_state_dict(weights):
        raise VitcodError(f"{flag} {source} holds no model weights; give a checkpoint of a timm or DeiT model.")
    weights = _checked(weights, f"{flag} {source}")
    try:
        info = {} if key is None else _published_info(fields, key)
    except ValueError as error:
        raise VitcodError(
            f"{flag} {source} is no checkpoint of a training: {error}; save its weights alone."
        ) from error
    named = {"model": fields.get("arch"), **info.get("args", {})}
    config = _published_config(named, weights, f"{flag} {source}")
    return Checkpoint(weights, config, "published" if raw == "model" else "timm", source, path, info)


def _is_state_dict(value: Any) -> bool:
    import torch

    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


def _published_info(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """``args`` as a dictionary, ``epoch``, and under ``left_out`` the names of what we have no use for."""
    args = fields.get("args")
    if isinstance(args, Namespace):
        args = vars(args)
    left_out = [name for name in fields if name not in (key, "args", "epoch") and not _is_empty(fields[name])]
    return {
        "args": plain(args) if isinstance(args, Mapping) else {},
        "epoch": plain(fields.get("epoch")),
        "left_out": [str(name)[:60] for name in left_out[:_MOST_LEFT_OUT]],
    }


def _is_empty(value: Any) -> bool:
    """Whether there is nothing in it; a tensor, which has no truth value of its own, is something."""
    return value is None or (isinstance(value, (Mapping, list, tuple, str, bool, int, float)) and not value)


def _published_config(args: Mapping[str, Any], state_dict: Mapping[str, Tensor], where: str) -> ModelConfig | None:
    """The model that a published checkpoint's ``args`` name, its shape read off the tensors."""
    name, kwargs = args.get("model"), args.get("model_kwargs")
    size: Any = args.get("input_size")
    img_size = img_size_of(state_dict) or ((size, size) if is_count(size) else None)
    if not isinstance(name, str) or not name or img_size is None:
        return None
    if isinstance(kwargs, Mapping):
        check_model_kwargs(kwargs, f"{where}: its model_kwargs")
    return ModelConfig(
        model=name,
        num_classes=class_count_of(state_dict),
        img_size=img_size,
        svd_type=svd_type_of(state_dict),
        model_kwargs=dict(kwargs) if isinstance(kwargs, Mapping) else {},
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
    metadata = {**info, "model_config": config.to_dict()}
    write_safetensors(path, _unwrapped(state_dict), CHECKPOINT, metadata)
