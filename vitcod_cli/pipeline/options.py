"""The options of ``compress`` and ``sweep``. Imports neither torch nor timm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitcod_cli.artifacts.hub_settings import HubSettings
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.masks.block_settings import BlockSettings
from vitcod_cli.masks.floor_settings import FloorSettings
from vitcod_cli.model.settings import ModelSettings, init_from_setting
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import ResultSettings, Settings, setting
from vitcod_cli.steps.options import LATE_WEIGHT

Method = Literal["info", "allocated"]

DEFAULT_SPARSITY = 0.9
MAP_IMAGES, IMPORTANCE_IMAGES = 512, 256
VIA = (0.75, 0.85, 0.9)
"""Sparsities on the way to sparser allocated masks."""

_SPARSITY: dict[str, Any] = {"above": 0, "below": 1, "panel": "Mask"}


def way_to(
    sparsity: float, via: Sequence[float], calibration: CalibrationSettings
) -> list[tuple[float, CalibrationSettings]]:
    """The sparsities on the way to a mask, ascending, each with its calibration: half of the steps of each kind.

    None where nothing is calibrated: importance is measured in rounds anyway.
    """
    half = calibration.changed(
        calibrate_steps=math.ceil(calibration.calibrate_steps / 2),
        calibrate_joint_steps=math.ceil(calibration.calibrate_joint_steps / 2),
    )
    return [(share, half) for share in sorted(set(via)) if 0 < share < sparsity and half.enabled]


def late_weight_for(calibration: CalibrationSettings) -> float:
    """What damage in the last block counts where a mask is calibrated like that; 1 where nothing mends it."""
    return LATE_WEIGHT if calibration.enabled else 1.0


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(Settings, panel="Model"):
    """What ``compress`` and ``sweep`` have in common."""

    init_from: str = init_from_setting("name the weights of the model to compress.")
    map_images: int = setting(
        MAP_IMAGES, "Training images that the attention map is the mean of.", minimum=1, metavar="N", panel="Mask"
    )
    importance_images: int = setting(
        IMPORTANCE_IMAGES,
        "Training images on which the model's sensitivity to every entry is measured, for allocated masks.",
        minimum=1,
        metavar="N",
        panel="Mask",
    )
    via: list[float] = setting(
        list(VIA),
        "Sparsities on the way to an allocated mask that is sparser: the model is masked so far and calibrated "
        "first, and its sensitivity measured again. 0: straight there.",
        minimum=0,
        below=1,
        metavar="SHARE",
        panel="Mask",
    )
    epochs: int = setting(
        0,
        "Epochs of fine-tuning under the mask after its calibration; the dense model teaches, without labels.",
        minimum=0,
        panel="Recipe",
    )
    lr: float = setting(
        1e-5,
        "Learning rate of these epochs for a global batch of 512; scaled to the real one.",
        above=0,
        panel="Recipe",
    )
    batch_size: int = setting(
        64, "Images in a batch of each process, in these epochs and in evaluation.", minimum=1, panel="Recipe"
    )
    floor: FloorSettings = field(default_factory=FloorSettings)
    tiles: BlockSettings = field(default_factory=BlockSettings)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    output: OutputSettings
    result: ResultSettings = field(default_factory=ResultSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs and self.batch_size % 2:
            raise VitcodError(
                f"--batch-size {self.batch_size} must be even with --epochs, whose mixup pairs the images of "
                "a batch."
            )

    def way_to(self, method: Method, sparsity: float) -> list[tuple[float, CalibrationSettings]]:
        """See :func:`way_to`."""
        return way_to(sparsity, self.via if method == "allocated" else (), self.calibration)

    def check_floor(self, methods: list[Method], flag: str, sparsities: list[float]) -> None:
        """Raise a VitcodError if ``--min-density`` is given to other methods or tiles, or no mask can have it.

        Args:
            flag: the option that ``sparsities`` are of.
        """
        if self.floor != FloorSettings() and "allocated" not in methods:
            raise VitcodError("--min-density goes with allocated masks, not with info; leave it out.")
        if self.floor != FloorSettings() and self.tiles.given:
            raise VitcodError(f"--min-density counts single entries; leave it or {self.tiles.chosen_by} out.")
        for sparsity in sparsities:
            if conflict := self.floor.conflict(sparsity, flag):
                raise VitcodError(conflict)


@dataclass(frozen=True, kw_only=True)
class CompressOptions(PipelineOptions, panel="Mask"):
    """Options of ``vitcod compress``."""

    sparsity: float | None = setting(
        None, "Share of attention entries to prune.", show_default=f"{DEFAULT_SPARSITY:g}", **_SPARSITY
    )
    max_drop: float | None = setting(
        None,
        "Instead of --sparsity: prune as much as costs at most so many points of Acc@1, or, of images without "
        "labels, of agreement with the dense model; not for models without a head. Tries up to seven masks.",
        minimum=0,
        maximum=100,
        metavar="POINTS",
        show_default=False,
    )
    method: Method = setting(
        "allocated",
        "allocated: the entries to which the model's output is most sensitive; info: the paper's mask.",
    )
    lowrank: LowRankSettings = field(default_factory=LowRankSettings)
    hub: HubSettings = field(default_factory=HubSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is not None and self.max_drop is not None:
            raise VitcodError(
                "--sparsity and --max-drop exclude each other: say how sparse the model shall be, or how much it "
                "may lose."
            )
        self.check_floor([self.method], "--sparsity", [self.asked_sparsity] if self.max_drop is None else [])

    @property
    def asked_sparsity(self) -> float:
        """Of the mask, where ``max_drop`` doesn't decide."""
        return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity


@dataclass(frozen=True, kw_only=True)
class SweepOptions(PipelineOptions, panel="Mask"):
    """Options of ``vitcod sweep``."""

    sparsities: list[float] = setting(
        [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], "Shares of attention entries to prune.", metavar="SHARE", **_SPARSITY
    )
    methods: list[Method] = setting(["info", "allocated"], "Ways to choose the entries; see compress --method.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, values in (("--sparsities", self.sparsities), ("--methods", self.methods)):
            if not values:
                raise VitcodError(f"{flag} is empty; name at least one, or leave it out.")
            if len(set(values)) < len(values):
                raise VitcodError(f"{flag} names the same one twice; give each once.")
        self.check_floor(self.methods, "--sparsities", self.sparsities)
