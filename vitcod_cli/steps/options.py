"""The options of each step: what ``vitcod STEP --help`` shows and what its function takes.

Imports neither torch nor timm, so that the help is instant. Those of step 3 stand with its methods, in
``masks/settings.py``: they need numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vitcod_cli.calibration.settings import CalibrationSettings, LowRankCalibrationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.settings import (
    AttentionKernel,
    ModelSettings,
    attention_setting,
    check_attention,
    checkpoint_setting,
    init_from_setting,
    mask_setting,
)
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import ResultSettings, Settings, required, setting
from vitcod_cli.training.options import FineTuneOptions
from vitcod_cli.training.recipe import DenseRecipe, LowRankRecipe, SparseRecipe


@dataclass(frozen=True, kw_only=True)
class DenseOptions(FineTuneOptions, panel="Model"):
    """Options of ``finetune-dense``."""

    init_from: str | None = init_from_setting()
    recipe: DenseRecipe = field(default_factory=DenseRecipe)


@dataclass(frozen=True, kw_only=True)
class LowRankOptions(FineTuneOptions, panel="Model"):
    """Options of ``finetune-lowrank``."""

    init_from: str = init_from_setting("name the weights of the dense model.")
    lowrank: LowRankSettings = field(default_factory=LowRankSettings)
    calibration: LowRankCalibrationSettings = field(default_factory=LowRankCalibrationSettings)
    recipe: LowRankRecipe = field(default_factory=LowRankRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowrank.svd_type == "none":
            raise VitcodError(
                "--svd-type none leaves nothing to do: name which of Q and K to compress, or train with "
                "finetune-dense or finetune-sparse."
            )


@dataclass(frozen=True, kw_only=True)
class SparseOptions(FineTuneOptions, panel="Model"):
    """Options of ``finetune-sparse``."""

    init_from: str = init_from_setting("name the weights of the dense or low-rank model.")
    mask: str | None = mask_setting()
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    recipe: SparseRecipe = field(default_factory=SparseRecipe)


LATE_WEIGHT = 4.0
"""How many times the damage in the last block counts as much as in the first for a mask that is calibrated."""


@dataclass(frozen=True, kw_only=True)
class AttentionMapOptions(Settings):
    """Options of ``dump-attn``: whose attention, over which images, and where to."""

    checkpoint: str = checkpoint_setting("name the weights whose attention is wanted.")
    mask: str | None = mask_setting()
    split: Literal["train", "val"] = setting("train", "Split to average over.", panel="Data")
    transform: Literal["eval", "train"] = setting(
        "eval", "Resize and crop as for evaluation, or augment as for training.", panel="Data"
    )
    max_images: int | None = setting(
        None,
        "Images to average over, spread evenly over the split (of a stream, the first ones).",
        panel="Data",
        metavar="N",
        minimum=1,
        show_default="all",
    )
    importance_images: int = setting(
        0,
        "Images on which the sensitivity of the model's output to every entry is measured, for gen-mask "
        "--allocate; 256 will do. Takes as long as evaluating 15 times as many; needs no labels.",
        panel="Data",
        metavar="N",
        minimum=0,
        show_default="0, which leaves it out",
    )
    late_weight: float = setting(
        LATE_WEIGHT,
        "Of --importance-images: how many times the damage in the last block counts as much as in the first, "
        "where a head reads the class token; in between it rises. Calibration mends it least there; 1 is for a "
        "mask that won't be calibrated.",
        panel="Data",
        minimum=1,
        maximum=1000,
        metavar="X",
    )
    batch_size: int = setting(96, "Images in a batch of each process.", panel="Runtime", minimum=1)
    output: str = setting("attn.safetensors", "File to write.", panel="Output", metavar="FILE")
    overwrite: bool = setting(False, "Replace the file when it is there already.", panel="Output")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.late_weight != LATE_WEIGHT and not self.importance_images:
            raise VitcodError(
                "--late-weight weighs what --importance-images measures: say that too, or leave it out."
            )


SENSITIVITY_MAP_IMAGES = 64
"""Of a map that ``sensitivity`` measures, unless it is told another number."""


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions(Settings, panel="Mask"):
    """Options of ``sensitivity``: what of whose attention is pruned, how far, and which images judge it."""

    checkpoint: str = checkpoint_setting("name the weights of the model whose sensitivity is wanted.")
    sparsities: list[float] = setting(
        [0.5, 0.75, 0.9, 0.95],
        "Shares of its attention entries to prune in one part at a time.",
        metavar="SHARE",
        above=0,
        below=1,
    )
    per: Literal["block", "head"] = setting("block", "What is pruned alone: all heads of a block, or one head.")
    method: Literal["allocated", "info"] = setting(
        "allocated",
        "Which entries go. allocated: those to which the model's output is least sensitive; info: by the paper's "
        "info cut.",
    )
    attn_map: str | None = setting(
        None,
        "Prune by this map of vitcod dump-attn, with --importance-images for allocated masks; left out, it is "
        "measured here.",
        metavar="FILE",
        show_default=False,
        aliases=("--attn",),
    )
    map_images: int | None = setting(
        None,
        "Training images that attention and importance are measured on; needs no labels.",
        metavar="N",
        minimum=1,
        show_default=str(SENSITIVITY_MAP_IMAGES),
    )
    images: int = setting(
        64,
        "Held-out images that the change is measured on, spread evenly over the validation split; needs no "
        "labels.",
        panel="Data",
        metavar="N",
        minimum=1,
    )
    batch_size: int = setting(32, "Images in a batch of each process.", panel="Runtime", minimum=1)
    output: str | None = setting(
        None, "Write the figures to this .csv or .json file.", panel="Output", metavar="FILE", show_default=False
    )
    plot: str | None = setting(
        None,
        "Draw them to this .png, .pdf or .svg file.",
        panel="Output",
        metavar="FILE",
        show_default=False,
    )
    overwrite: bool = setting(False, "Replace files that are there already.", panel="Output")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsities:
            raise VitcodError("--sparsities is empty; name at least one, or leave it out.")
        if len(set(self.sparsities)) < len(self.sparsities):
            raise VitcodError("--sparsities names the same one twice; give each once.")
        if self.attn_map is not None and self.map_images is not None:
            raise VitcodError("--map-images are those of a map that is measured here; leave it or --attn-map out.")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Settings):
    """Options of ``eval``. From Python, one checkpoint and one mask may be given as plain texts, too."""

    checkpoint: list[str] = required(
        "Weights, of one model or of several: files (ours, timm's or the published code's, or programs of vitcod "
        "export), https:// addresses, or timm for the pretrained weights of --model.",
        "name the weights to evaluate.",
        panel="Model",
        metavar="FILE...",
        aliases=("--finetune",),
    )
    mask: list[str] = setting(
        [],
        "Masks to apply: from gen-mask, or published .npy.",
        panel="Model",
        metavar="FILE...",
        show_default=False,
        aliases=("--mask-path",),
    )
    against: str | None = setting(
        None,
        "Weights of a model to compare with, the dense one say: agreement, and the paired difference.",
        panel="Model",
        metavar="FILE",
        show_default=False,
    )
    features: bool = setting(
        False,
        "Judge by features, beside those of --against or of the first model: pooled ones, patch tokens, nearest "
        "images. Labels aren't looked at. By itself for models without a head.",
        panel="Model",
    )
    trust_program: bool = setting(
        False, "Run a .pt2 program, which can hold any code: of files that you made.", panel="Model"
    )
    split: Literal["train", "val"] = setting("val", "Split to evaluate on.", panel="Data")
    batch_size: int = setting(96, "Images in a batch of each process.", panel="Runtime", minimum=1)
    attention: AttentionKernel = attention_setting()
    results_file: str | None = setting(
        None,
        "Add a row a model to this .csv (or .json), with the columns of timm's results and more.",
        panel="Output",
        metavar="FILE",
        show_default=False,
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        for name in ("checkpoint", "mask"):
            value: Any = getattr(self, name)
            if not isinstance(value, list):
                object.__setattr__(self, name, [] if value is None else [value])
        super().__post_init__()
        if not self.checkpoint:
            raise VitcodError("--checkpoint is needed: name the weights to evaluate.")
        check_attention(self.attention, self.runtime)
        if self.features and self.is_of_one_model:
            raise VitcodError(
                "--features compares the features of models; name the model whose features they should be "
                "(--against CHECKPOINT), or several checkpoints or masks."
            )
        if self.mask and 1 != len(self.checkpoint) != len(self.mask):
            masks = "1 mask" if len(self.mask) == 1 else f"{len(self.mask)} masks"
            raise VitcodError(
                f"--checkpoint names {len(self.checkpoint)} models and --mask {masks}; give one checkpoint for "
                "all masks, or as many checkpoints as masks."
            )

    @property
    def pairs(self) -> list[tuple[str, str | None]]:
        """The checkpoint and the mask of each model."""
        if not self.mask:
            return [(checkpoint, None) for checkpoint in self.checkpoint]
        checkpoints = self.checkpoint * len(self.mask) if len(self.checkpoint) == 1 else self.checkpoint
        return list(zip(checkpoints, self.mask, strict=True))

    @property
    def is_of_one_model(self) -> bool:
        """Whether there is nothing to compare."""
        return len(self.pairs) == 1 and self.against is None


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Settings, panel="Output"):
    """Options of ``demo``."""

    output_dir: str = setting("vitcod-demo", "Folder for models, maps, masks and pictures.", metavar="FOLDER")
    overwrite: bool = setting(False, "Replace what an earlier demonstration wrote there.")
