"""``vitcod convert``: published files to ours and back, every tensor bit for bit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map, write_attention_map
from vitcod_cli.artifacts.describe import ATTENTION_MAP, CHECKPOINT, MASK, Description, describe
from vitcod_cli.artifacts.download import is_url
from vitcod_cli.artifacts.files import checked_path, sha256_of
from vitcod_cli.artifacts.mask import Mask, published_mask, read_mask, write_mask
from vitcod_cli.artifacts.published import mask_beside, plain, published_checkpoint, write_npy
from vitcod_cli.cli.console import console, print_result
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.settings import Settings, setting

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from vitcod_cli.artifacts.checkpoint import Checkpoint

Form = Literal["vitcod", "reference"]
FLAG = "SOURCE"


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(Settings):
    """Which way to convert, and where to."""

    to: Form = setting("vitcod", "Our safetensors, or the published .pth and .npy.", panel="Output")
    output: str | None = setting(
        None, "File to write; left out, beside the source.", panel="Output", metavar="FILE", show_default=False
    )
    overwrite: bool = setting(False, "Replace the file when it is there already.", panel="Output")
    mask: str | None = setting(
        None,
        "Mask that a published checkpoint was trained under; left out, the one it names, when that is beside it.",
        panel="Model",
        metavar="FILE",
        show_default=False,
    )


def convert(
    *,
    source: Annotated[str, typer.Argument(help="A checkpoint, attention map or mask, published or ours.")],
    convert: ConvertSettings,
    model: ModelSettings,
) -> None:
    """Turn published checkpoints, maps and masks into vitcod's files, and back, bit for bit."""
    what = None if is_url(source) else describe(checked_path(source, FLAG))
    kind = CHECKPOINT if what is None else what.kind  # an old .pth has no mark to know it by
    _check_direction(source, what, convert.to)
    if kind == CHECKPOINT:
        written = _convert_checkpoint(source, convert, model)
    elif convert.mask is not None:
        raise VitcodError(f"--mask goes with a checkpoint, but {source} is {what}.")
    else:
        target = _target(source, convert, ".safetensors" if convert.to == "vitcod" else ".npy")
        (_convert_mask if kind == MASK else _convert_map)(source, target, convert.to)
        written = [target]
    for path in written:
        print_result(str(path))


def _check_direction(source: str, what: Description | None, to: Form) -> None:
    if what is not None and what.kind not in (CHECKPOINT, MASK, ATTENTION_MAP):
        raise VitcodError(f"{source} can't be converted: it seems to be {what}.")
    if what is not None and to == "vitcod" and what.own:
        raise VitcodError(f"{source} is vitcod's own already; --to reference turns it into the published form.")
    if what is not None and to == "reference" and what.container == "npy":
        raise VitcodError(f"{source} is in the published form already; --to vitcod turns it into ours.")


def _target(source: str, settings: ConvertSettings, suffix: str) -> Path:
    """The file to write: ``--output``, or the source's name with another suffix."""
    name = Path(source.rpartition("/")[2]) if is_url(source) else Path(source)
    target = Path(settings.output) if settings.output is not None else name.with_suffix(suffix)
    if settings.output is None and target == name:
        target = name.with_name(f"{name.stem}_vitcod{suffix}")
    if target.exists() and not is_url(source) and os.path.samefile(source, target):
        raise VitcodError(f"--output {target} is the source itself; name another file.")
    return _free(target, settings.overwrite)


def _free(target: Path, overwrite: bool) -> Path:
    if target.exists() and not overwrite:
        raise VitcodError(f"{target} exists; replace it with --overwrite, or name another file with --output.")
    return target


# -- arrays -----------------------------------------------------------------------------------


def _made_from(source: str) -> dict[str, Any]:
    return {"made_by": "vitcod convert", "made_from": sha256_of(source), "source": Path(source).name}


def _convert_mask(source: str, target: Path, to: Form) -> None:
    mask = read_mask(source, FLAG)
    if to == "vitcod":
        write_mask(target, Mask(mask.keep, _made_from(source)))
    else:
        write_npy(target, published_mask(mask))


def _convert_map(source: str, target: Path, to: Form) -> None:
    attention_map = read_attention_map(source, FLAG)
    if to == "reference":
        write_npy(target, attention_map.attention)
        return
    if not np.array_equal(attention_map.attention, np.load(source, mmap_mode="r", allow_pickle=False)):
        raise VitcodError(f"{source} holds numbers that float32 can't; save it as float32 first.")
    write_attention_map(target, AttentionMap(attention_map.attention, 0, _made_from(source)))


# -- checkpoints ------------------------------------------------------------------------------


def _convert_checkpoint(source: str, settings: ConvertSettings, model_settings: ModelSettings) -> list[Path]:
    from vitcod_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
    from vitcod_cli.artifacts.pickled import write_pickled
    from vitcod_cli.model.build import keep_mask, model_config

    target = _target(source, settings, ".safetensors" if settings.to == "vitcod" else ".pth")
    checkpoint = read_checkpoint(source, FLAG, console())
    if checkpoint.layout == "published" and settings.to == "reference":
        raise VitcodError(f"{source} is in the published form already; --to vitcod turns it into ours.")
    model = _model_of(checkpoint, settings.mask, model_settings)
    # The tensors of the file, not the model's: those are float32 whatever the file has.
    tensors = {name: checkpoint.state_dict.get(name, value) for name, value in model.state_dict().items()}
    if left_out := checkpoint.info.get("left_out"):
        console().info(f"Left out of {source}: {', '.join(left_out)}.")
    if settings.to == "vitcod":
        about = {"made_by": "vitcod convert", "made_from": checkpoint.sha256, "source": Path(source).name}
        args = {key: plain(value) for key, value in checkpoint.info.items() if key in ("args", "epoch")}
        write_checkpoint(target, tensors, model_config(model), {**about, **args})
        return [target]
    keep, mask_target = keep_mask(model), target.with_name(f"{target.stem}_mask.npy")
    if keep is not None:
        _free(mask_target, settings.overwrite)
        write_npy(mask_target, published_mask(Mask(keep.numpy())))
    weights = {name: value for name, value in tensors.items() if not name.endswith(".keep")}
    mask_name = None if keep is None else mask_target.name
    write_pickled(target, published_checkpoint(weights, model_config(model), checkpoint.info, mask_name))
    return [target] if keep is None else [target, mask_target]


def _model_of(checkpoint: Checkpoint, mask: str | None, settings: ModelSettings) -> VisionTransformer:
    """The model of the checkpoint, under its mask: proof that the file is whole and fits what it says."""
    from vitcod_cli.model.build import build_model
    from vitcod_cli.model.load import apply_mask, load_weights
    from vitcod_cli.model.resolve import resolve_config

    model = build_model(resolve_config(settings, checkpoint, FLAG, None))
    load_weights(model, checkpoint, flag=FLAG, reporter=console())
    shapes = {name: value.shape for name, value in checkpoint.state_dict.items()}
    changed = [name for name, value in model.state_dict().items() if shapes.get(name) != value.shape]
    if changed:
        raise VitcodError(
            f"Converting changes no tensor, but the model asked for needs another {changed[0]} than "
            f"{checkpoint.source} has; leave --num-classes out and give the checkpoint's own --img-size."
        )
    named = checkpoint.info.get("args", {}).get("mask_path") if checkpoint.layout == "published" else None
    found = mask or mask_beside(checkpoint.source, named)
    if found is not None:
        apply_mask(model, found, "--mask")
        console().info(f"The mask {found} goes into the checkpoint.")
    elif named:
        console().warn(
            f"{checkpoint.source} was trained under the mask {named}, which is not there: give it as --mask."
        )
    return model
