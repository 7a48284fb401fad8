"""The options that all training shares. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitcod_cli.artifacts.hub_settings import HubSettings
from vitcod_cli.artifacts.output_folder import OutputSettings
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.settings import ResultSettings, Settings
from vitcod_cli.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions(Settings):
    """What the three fine-tuning steps have in common."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    recipe: Recipe = field(default_factory=Recipe)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    output: OutputSettings
    hub: HubSettings = field(default_factory=HubSettings)
    result: ResultSettings = field(default_factory=ResultSettings)
