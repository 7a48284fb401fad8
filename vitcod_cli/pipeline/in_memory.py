"""All steps in a row without labels: low-rank heads, a map, a mask, each followed by calibration."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitcod_cli.artifacts.model_config import SvdType
from vitcod_cli.attention.measure import measure_map
from vitcod_cli.attention.room import scratch_for_maps
from vitcod_cli.calibration.blockwise import calibrate
from vitcod_cli.calibration.checks import check_memory, check_shares
from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.unlabelled import open_unlabelled
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.initialise import add_auto_encoders
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.masks.allocate import Allocated
from vitcod_cli.masks.block_settings import BlockSettings
from vitcod_cli.masks.budget import check_reachable
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.masks.generate import generate_mask
from vitcod_cli.masks.info import Info
from vitcod_cli.masks.settings import MaskSettings
from vitcod_cli.model.adopt import adopt
from vitcod_cli.model.build import check_auto_encoder, model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attention_shape, fold_auto_encoders, has_mask, set_keep_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.pipeline.options import IMPORTANCE_IMAGES, MAP_IMAGES, VIA, late_weight_for, way_to
from vitcod_cli.pipeline.setup import check_tiles
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, RuntimeSettings, start
from vitcod_cli.steps.lowrank import initialise_from
from vitcod_cli.steps.setup import dense_copy, read_crops


def compress(
    model: nn.Module | str | os.PathLike[str],
    images: str | os.PathLike[str] | Iterable[Tensor],
    *,
    sparsity: float | None = 0.9,
    svd_type: SvdType = "mix_head_fc_qk",
    allocate: bool = True,
    min_density: float | None = None,
    block_for: Literal["cpu", "gpu"] | None = None,
    via: Sequence[float] = VIA,
    num_images: int = 2048,
    lowrank_calibration: LowRankCalibrationSettings | None = None,
    calibration: CalibrationSettings | None = None,
    runtime: RuntimeSettings | None = None,
    reporter: Reporter = QUIET,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Transformer:
    """Make a Vision Transformer low-rank and sparse, in minutes and without labels.

    It is what ``finetune-lowrank --epochs 0``, ``dump-attn``, ``gen-mask`` and ``finetune-sparse --epochs 0
    --distill-from`` do one after the other, the last three for each sparsity on the way, too; in a folder that is
    ``vitcod compress``.

    Args:
        model: made by ``timm.create_model`` or :func:`vitcod_cli.load`, which stays as it is; or a checkpoint.
        images: a folder, of which ``num_images`` are drawn; or batches [B, C, H, W], float32 and normalised as
            the model expects it, of which the first ``num_images`` images are taken.
        sparsity: share of attention entries to prune; None leaves the model without a mask.
        svd_type: which of Q and K pass through a head auto-encoder; ``none`` leaves them as they are.
        allocate: spend the sparsity where it does the least damage; else by the paper's info cut.
        min_density: share of its entries that every head keeps at least when the sparsity is allocated.
        block_for: prune whole tiles that the kernels of this device skip (``gen-mask --block-for``).
        via: sparsities on the way to a sparser allocated mask: the model is masked so far and calibrated in half
            of the steps first, and its sensitivity measured again; empty goes straight there.
        lowrank_calibration, calibration: of the two kinds of calibration; ``calibrate_steps=0`` leaves one out.
            ``num_images`` stands in the place of the second's ``calibrate_images``.
        runtime: device, precision, seed.
        model_kwargs: what ``timm.create_model`` was given for ``model`` beside its name, ``num_classes`` and
            ``img_size``, if anything.

    Returns:
        The compressed model in eval mode, to use, to train further, or to write with :func:`vitcod_cli.save`.

    Raises:
        VitcodError: if the model can't be treated or was treated already, there are no images, or the sparsity
            can't be reached.
    """
    if num_images < 1:
        raise VitcodError(f"num_images must be at least 1, not {num_images}.")
    heads = LowRankSettings(svd_type=svd_type) if svd_type != "none" else None
    mask, tiles = None, BlockSettings(block_for=block_for)
    if sparsity is not None:
        allocated = Allocated(allocate=allocate, floor=FloorSettings(min_density=min_density))
        mask = MaskSettings(info=Info(sparsity=sparsity), allocated=allocated, tiles=tiles)
    lowrank_calibration = lowrank_calibration or LowRankCalibrationSettings()
    calibration = calibration or CalibrationSettings()
    with start(runtime or RuntimeSettings()) as running:
        running.announce_precision(reporter)
        dense = _dense(model, model_kwargs, reporter)
        _check_untreated(dense, svd_type)
        if heads is not None:
            check_auto_encoder(dense, model_config(dense))
        dense = running.prepare(dense).eval().requires_grad_()
        asked = calibration.changed(calibrate_images=num_images)
        if mask is None:
            asked = asked.changed(calibrate_steps=0, calibrate_joint_steps=0)
        sample = _sample(images, dense, asked, running, reporter)
        first = sample.first(lowrank_calibration.calibrate_images)
        for wanted, some, settings in ((heads, first, lowrank_calibration), (mask, sample, calibration)):
            if wanted is not None:
                check_shares(some, settings, "num_images")
        if sparsity is not None:
            check_reachable(attention_shape(dense), dense.num_prefix_tokens, sparsity)
            check_tiles(dense, tiles)
        fit = partial(calibrate, runtime=running.for_training, reporter=reporter)
        student = dense_copy(dense)
        if heads is not None:
            add_auto_encoders(student, heads)
            initialise_from(dense, student, first, heads, runtime=running, reporter=reporter)
            if lowrank_calibration.enabled:
                fit(student, dense, first, lowrank_calibration, scope="attention")
        if mask is not None:
            assert sparsity is not None
            stages = way_to(sparsity, via if allocate else (), calibration)
            weight = late_weight_for(calibration)
            for share, settings in [*stages, (sparsity, calibration)]:
                at = mask.changed(info=Info(sparsity=share))
                set_keep_mask(student, _mask(student, sample, at, running, reporter, late_weight=weight))
                if settings.enabled:
                    fit(student, dense, sample, settings, scope="block")
    return student.eval()


def _dense(
    model: nn.Module | str | os.PathLike[str], model_kwargs: Mapping[str, Any] | None, reporter: Reporter
) -> Transformer:
    """The model to compress, of our own."""
    if isinstance(model, nn.Module):
        return adopt(model, model_kwargs)
    kwargs = [f"{name}={value!r}" for name, value in (model_kwargs or {}).items()]
    return load_model(ModelSettings(model_kwargs=kwargs), os.fspath(model), flag="model", reporter=reporter)


def _sample(
    images: str | os.PathLike[str] | Iterable[Tensor],
    model: Transformer,
    settings: CalibrationSettings,
    runtime: Runtime,
    reporter: Reporter,
) -> CalibrationImages:
    """The images that ``settings`` ask for, in as many crops, of a folder; or of batches, as they are."""
    preprocess = preprocess_of(model)
    if not isinstance(images, (str, os.PathLike)):
        return _gather(images, preprocess, settings.calibrate_images, runtime.device)
    found = open_unlabelled(images, reporter)
    folder = Path(tempfile.gettempdir())
    check_memory(model, preprocess, len(found), settings, device=runtime.device, folder=folder, flag="num_images")
    return read_crops(
        found,
        preprocess,
        settings.calibrate_images,
        settings.crops(min(settings.calibrate_images, len(found))),
        workers=None,
        runtime=runtime,
        reporter=reporter,
    )


def _check_untreated(model: Transformer, svd_type: SvdType) -> None:
    """Refuse a model that would be treated twice, and teach itself what it has lost."""
    if has_mask(model):
        raise VitcodError("The model has a mask already; give compress the model that it was made from.")
    if svd_type != "none" and model_config(model).svd_type != "none":
        raise VitcodError(
            'The model is low-rank already; give compress the dense model, or svd_type="none" for a mask alone.'
        )


def _gather(
    batches: Iterable[Tensor], preprocess: Preprocess, count: int, device: torch.device
) -> CalibrationImages:
    """The first ``count`` images of ``batches``, kept as they are."""
    parts: list[Tensor] = []
    for images in batches:
        if not isinstance(images, Tensor):
            raise VitcodError(f"images must be batches of images alone, not {type(images).__name__}s.")
        if not images.is_floating_point() or images.shape[1:] != preprocess.input_size:
            raise VitcodError(
                f"images must be float batches [B, {', '.join(map(str, preprocess.input_size))}], normalised, not "
                f"{images.dtype} {list(images.shape)}."
            )
        parts.append(images[: count - sum(map(len, parts))].float().cpu())
        if sum(map(len, parts)) == count:
            break
    if not parts:
        raise VitcodError("images holds no batch; give a folder, or batches of images.")
    gathered = torch.cat(parts)
    return CalibrationImages(gathered, preprocess, device, len(gathered))


def _mask(
    model: Transformer,
    images: CalibrationImages,
    settings: MaskSettings,
    runtime: Runtime,
    reporter: Reporter,
    *,
    late_weight: float,
) -> Tensor:
    """A mask bool [L, H, N, N] by the attention of ``model``, under its own mask if any, on some ``images``."""
    folded = copy.deepcopy(model)
    fold_auto_encoders(folded)
    few = images.first(IMPORTANCE_IMAGES) if settings.allocated.allocate else images.first(MAP_IMAGES)
    importance, folder = settings.allocated.allocate, Path(tempfile.gettempdir())
    scratch = scratch_for_maps(folded, runtime.device, folder, reporter, importance=importance, writes=False)
    attention_map = measure_map(
        folded, few, runtime, reporter, importance=importance, late_weight=late_weight, scratch=scratch
    )
    mask = generate_mask(attention_map, settings, reporter)
    return torch.from_numpy(mask.keep)
