"""vitcod: make Vision Transformers sparse and low-rank (ViTCoD, HPCA 2023).

From Python::

    import vitcod_cli

    model = vitcod_cli.compress("deit_tiny.safetensors", "imagenet/train", sparsity=0.9)
    vitcod_cli.save(model, "sparse.safetensors")
    model = vitcod_cli.load("sparse.safetensors")
    logits = model(model.transform(image)[None])

The steps are functions of their options, which are those of the command line::

    data = vitcod_cli.DataSettings(data_path="imagenet")
    options = vitcod_cli.EvalOptions(checkpoint="sparse.safetensors", data=data)
    print(vitcod_cli.evaluate(options).line())

Importing it imports neither torch nor timm; using what is in it does.
"""

from __future__ import annotations

from vitcod_cli.version import __version__

TYPE_CHECKING = False  # importing typing takes a while, in which Ctrl-C would end in a traceback
if TYPE_CHECKING:
    from typing import Any

    from vitcod_cli.accelerator.run import simulate
    from vitcod_cli.accelerator.settings import SimulateOptions
    from vitcod_cli.api import load, save
    from vitcod_cli.artifacts.output_folder import OutputSettings
    from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
    from vitcod_cli.data.augmentation import AugmentationSettings
    from vitcod_cli.data.settings import DataSettings
    from vitcod_cli.errors import VitcodError
    from vitcod_cli.lowrank.settings import LowRankSettings
    from vitcod_cli.masks.order_settings import PolarizeOptions
    from vitcod_cli.masks.settings import MaskOptions, MaskSettings
    from vitcod_cli.model.settings import ModelSettings
    from vitcod_cli.pipeline.compress import compress_run
    from vitcod_cli.pipeline.in_memory import compress
    from vitcod_cli.pipeline.options import CompressOptions, SweepOptions
    from vitcod_cli.pipeline.sweep import sweep
    from vitcod_cli.runtime import RuntimeSettings
    from vitcod_cli.steps.attention_map import dump_attention
    from vitcod_cli.steps.dense import finetune_dense
    from vitcod_cli.steps.evaluation import evaluate, evaluate_models
    from vitcod_cli.steps.lowrank import finetune_lowrank
    from vitcod_cli.steps.mask import make_mask
    from vitcod_cli.steps.options import (
        AttentionMapOptions,
        DenseOptions,
        EvalOptions,
        LowRankOptions,
        SensitivityOptions,
        SparseOptions,
    )
    from vitcod_cli.steps.polarize import polarize
    from vitcod_cli.steps.sensitivity import sensitivity
    from vitcod_cli.steps.sparse import finetune_sparse
    from vitcod_cli.training.recipe import DenseRecipe, LowRankRecipe, SparseRecipe

_MODULES = {
    "api": ("load", "save"),
    "accelerator.run": ("simulate",),
    "accelerator.settings": ("SimulateOptions",),
    "artifacts.output_folder": ("OutputSettings",),
    "calibration.settings": ("CalibrationSettings", "LowRankCalibrationSettings"),
    "data.augmentation": ("AugmentationSettings",),
    "data.settings": ("DataSettings",),
    "errors": ("VitcodError",),
    "lowrank.settings": ("LowRankSettings",),
    "masks.order_settings": ("PolarizeOptions",),
    "masks.settings": ("MaskOptions", "MaskSettings"),
    "model.settings": ("ModelSettings",),
    "runtime": ("RuntimeSettings",),
    "steps.attention_map": ("dump_attention",),
    "pipeline.compress": ("compress_run",),
    "pipeline.in_memory": ("compress",),
    "pipeline.options": ("CompressOptions", "SweepOptions"),
    "pipeline.sweep": ("sweep",),
    "steps.dense": ("finetune_dense",),
    "steps.evaluation": ("evaluate", "evaluate_models"),
    "steps.lowrank": ("finetune_lowrank",),
    "steps.mask": ("make_mask",),
    "steps.polarize": ("polarize",),
    "steps.options": (
        *("AttentionMapOptions", "DenseOptions", "EvalOptions", "LowRankOptions", "SensitivityOptions"),
        "SparseOptions",
    ),
    "steps.sensitivity": ("sensitivity",),
    "steps.sparse": ("finetune_sparse",),
    "training.recipe": ("DenseRecipe", "LowRankRecipe", "SparseRecipe"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AttentionMapOptions",
    "AugmentationSettings",
    "CalibrationSettings",
    "CompressOptions",
    "DataSettings",
    "DenseOptions",
    "DenseRecipe",
    "EvalOptions",
    "LowRankCalibrationSettings",
    "LowRankOptions",
    "LowRankRecipe",
    "LowRankSettings",
    "MaskOptions",
    "MaskSettings",
    "ModelSettings",
    "OutputSettings",
    "PolarizeOptions",
    "RuntimeSettings",
    "SensitivityOptions",
    "SimulateOptions",
    "SparseOptions",
    "SparseRecipe",
    "SweepOptions",
    "VitcodError",
    "__version__",
    "compress",
    "compress_run",
    "dump_attention",
    "evaluate",
    "evaluate_models",
    "finetune_dense",
    "finetune_lowrank",
    "finetune_sparse",
    "load",
    "make_mask",
    "polarize",
    "save",
    "sensitivity",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """What the API has under ``name``, imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vitcod_cli' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"vitcod_cli.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
