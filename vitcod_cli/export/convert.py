"""``vitcod convert``: published files to ours and back, every tensor bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitcod_cli.artifacts.attention_map import AttentionMap, read_attention_map, write_attention_map
from vitcod_cli.artifacts.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vitcod_cli.artifacts.describe import ATTENTION_MAP, CHECKPOINT, MASK, Description, describe
from vitcod_cli.artifacts.download import is_url
from vitcod_cli.artifacts.files import checked_path, free_path
from vitcod_cli.artifacts.mask import Mask, published_mask, read_mask, write_mask
from vitcod_cli.artifacts.npz_file import SUFFIX, is_npz, write_npz
from vitcod_cli.artifacts.pickled import write_pickled
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.artifacts.published import mask_beside, plain, published_checkpoint, write_npy
from vitcod_cli.errors import VitcodError
from vitcod_cli.export.convert_settings import ConvertOptions, Form
from vitcod_cli.export.weights import named_arrays, widened
from vitcod_cli.masks.prefix import check_rows
from vitcod_cli.masks.statistics import mask_arrays
from vitcod_cli.model.build import build_model, model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import keep_mask
from vitcod_cli.model.load import apply_mask, load_weights
from vitcod_cli.model.resolve import resolve_config
from vitcod_cli.reporting import Reporter

_FLAG = "SOURCE"
_MADE_BY = "vitcod convert"


def convert(options: ConvertOptions, reporter: Reporter) -> list[Path]:
    """Convert the checkpoint, map or mask that ``options`` name; returns the files that were written.

    Raises:
        VitcodError: if it is none of these or in that form already, ``--output`` ends as another kind of file
            does, or something can't be read or written.
    """
    source = options.source
    description = None if is_url(source) else describe(checked_path(source, _FLAG))
    kind = CHECKPOINT if description is None else description.kind  # an old .pth has no mark to know it by
    endings = _endings(kind, options.to)
    if description is not None:
        _check_direction(options, description)
    if kind == CHECKPOINT:
        return _convert_checkpoint(options, endings, reporter)
    if options.mask is not None:
        raise VitcodError(f"--mask goes with a checkpoint, but {source} is {description}.")
    target = _target(options, endings)
    if is_npz(target):
        write_npz(target, *(_mask_arrays if kind == MASK else _map_arrays)(source))
    else:
        (_convert_mask if kind == MASK else _convert_map)(source, target, options.to)
    return [target]


def _endings(kind: str | None, to: Form) -> tuple[str, ...]:
    """What the name of the file that is written may end in; the first where the user gives no name."""
    if to == "vitcod":
        return (".safetensors", SUFFIX)
    return (".pth", ".pt") if kind == CHECKPOINT else (".npy",)


def _check_direction(options: ConvertOptions, description: Description) -> None:
    source, to, output = options.source, options.to, options.output
    if description.kind not in (CHECKPOINT, MASK, ATTENTION_MAP):
        raise VitcodError(f"{source} can't be converted: it seems to be {description}.")
    into_arrays = output is not None and not _is_folder(output) and is_npz(output)
    if to == "vitcod" and description.own and not into_arrays:
        raise VitcodError(
            f"{source} is vitcod's own already; --to reference turns it into the published form, --output "
            "NAME.npz into arrays for numpy alone."
        )
    if to == "reference" and description.container == "npy":
        raise VitcodError(f"{source} is in the published form already; --to vitcod turns it into ours.")


def _target(options: ConvertOptions, endings: tuple[str, ...]) -> Path:
    """The file to write: ``--output``, or the source's name with another suffix, in the folder ``--output``."""
    source, output, suffix = options.source, options.output, endings[0]
    name = Path(source.rpartition("/")[2]) if is_url(source) else Path(source)
    if output is not None and not _is_folder(output):
        path = free_path(output, options.overwrite, inputs=_inputs(options))
        _check_ending(path, endings)
        return path
    target = name.with_suffix(suffix) if output is None else Path(output, name.with_suffix(suffix).name)
    if target == name:
        target = name.with_name(f"{name.stem}_vitcod{suffix}")
    return free_path(target, options.overwrite, inputs=_inputs(options))


def _is_folder(output: str) -> bool:
    return output.endswith("/") or os.path.isdir(output)


def _check_ending(path: Path, endings: tuple[str, ...]) -> None:
    """Refuse a name whose ending says something else than what is written; one without says nothing."""
    if path.suffix and path.suffix.lower() not in endings:
        raise VitcodError(
            f"--output {path}: what is written is a {' or '.join(endings)} file; let the name end so, or in / "
            "for a folder."
        )


def _inputs(options: ConvertOptions) -> list[str]:
    return [path for path in (options.source, options.mask) if path is not None]


# -- arrays -----------------------------------------------------------------------------------


def _mask_arrays(source: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """A mask bool [L, H, N, N], and of each head [L, H] its sparsity and how many global tokens it has.

    Of a polarized mask also its order of tokens, and the global tokens of that order.
    """
    mask = read_mask(source, _FLAG)
    order = {} if mask.order is None else vars(mask.order)
    return {**mask_arrays(mask.keep), **order}, {**mask.info, **provenance(_MADE_BY, source)}


def _map_arrays(source: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """An attention map [L, H, N, N], and its importance where it has one."""
    read = read_attention_map(source, _FLAG)
    check_rows(read.attention, source)
    arrays = {"attention": read.attention}
    if read.importance is not None:
        arrays["importance"] = read.importance
    return arrays, {**read.info, "num_images": read.num_images, **provenance(_MADE_BY, source)}


def _convert_mask(source: str, target: Path, to: Form) -> None:
    mask = read_mask(source, _FLAG)
    if to == "vitcod":
        write_mask(target, Mask(mask.keep, provenance(_MADE_BY, source)))
    else:
        write_npy(target, published_mask(mask))


def _convert_map(source: str, target: Path, to: Form) -> None:
    attention_map = read_attention_map(source, _FLAG)
    check_rows(attention_map.attention, source)
    if to == "reference":
        write_npy(target, attention_map.attention)
        return
    if not np.array_equal(attention_map.attention, np.load(source, mmap_mode="r", allow_pickle=False)):
        raise VitcodError(f"{source} holds numbers that float32 can't; save it as float32 first.")
    write_attention_map(target, AttentionMap(attention_map.attention, 0, provenance(_MADE_BY, source)))


# -- checkpoints ------------------------------------------------------------------------------


def _convert_checkpoint(options: ConvertOptions, endings: tuple[str, ...], reporter: Reporter) -> list[Path]:
    source = options.source
    target = _target(options, endings)
    checkpoint = read_checkpoint(source, _FLAG, reporter, options.model.use_ema)
    if checkpoint.layout == "published" and options.to == "reference":
        raise VitcodError(f"{source} is in the published form already; --to vitcod turns it into ours.")
    model = _model_of(checkpoint, options, reporter)
    # The tensors of the file, not the model's: those are float32 whatever the file has.
    tensors = {name: checkpoint.state_dict.get(name, value) for name, value in model.state_dict().items()}
    if left_out := checkpoint.info.get("left_out"):
        reporter.info(f"Left out of {source}: {', '.join(left_out)}.")
    origin = {**provenance(_MADE_BY, source), "made_from": checkpoint.sha256}
    args = {key: plain(value) for key, value in checkpoint.info.items() if key in ("args", "epoch")}
    if is_npz(target):
        own = checkpoint.info if checkpoint.layout == "vitcod" else {}
        if wide := widened(tensors):
            reporter.info(f"numpy has no {tensors[wide[0]].dtype}: {len(wide)} tensors go in as float32, equal.")
        arrays = named_arrays(tensors, keep_mask(model))
        write_npz(target, arrays, {**own, **args, **origin, "model_config": model_config(model).to_dict()})
        return [target]
    if options.to == "vitcod":
        write_checkpoint(target, tensors, model_config(model), {**origin, **args})
        return [target]
    return _write_published(options, target, checkpoint, model, tensors)


def _write_published(
    options: ConvertOptions,
    target: Path,
    checkpoint: Checkpoint,
    model: Transformer,
    tensors: dict[str, Tensor],
) -> list[Path]:
    keep, mask_target = keep_mask(model), target.with_name(f"{target.stem}_mask.npy")
    if keep is not None:
        free_path(mask_target, options.overwrite, inputs=_inputs(options))
    weights = {name: value for name, value in tensors.items() if not name.endswith(".keep")}
    mask_name = None if keep is None else mask_target.name
    write_pickled(target, published_checkpoint(weights, model_config(model), checkpoint.info, mask_name))
    if keep is None:
        return [target]
    write_npy(mask_target, published_mask(Mask(keep.numpy())))
    return [target, mask_target]


def _model_of(checkpoint: Checkpoint, options: ConvertOptions, reporter: Reporter) -> Transformer:
    """The model of the checkpoint, under its mask: proof that the file is whole and fits what it says."""
    model = build_model(resolve_config(options.model, checkpoint, _FLAG))
    load_weights(model, checkpoint, flag=_FLAG, reporter=reporter)
    shapes = {name: value.shape for name, value in checkpoint.state_dict.items()}
    changed = [name for name, value in model.state_dict().items() if shapes.get(name) != value.shape]
    if changed:
        raise VitcodError(
            f"Converting changes no tensor, but the model asked for needs another {changed[0]} than "
            f"{checkpoint.source} has; leave --num-classes out and give the checkpoint's own --img-size."
        )
    named = checkpoint.info.get("args", {}).get("mask_path") if checkpoint.layout == "published" else None
    mask = options.mask or mask_beside(checkpoint.source, named)
    if mask is not None:
        apply_mask(model, mask, "--mask", reporter)
        reporter.info(f"The mask {mask} goes into the checkpoint.")
    elif named:
        reporter.warn(
            f"{checkpoint.source} was trained under the mask {named}, which is not there: give it as --mask."
        )
    return model
