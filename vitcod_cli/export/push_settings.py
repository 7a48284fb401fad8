"""What ``vitcod push`` uploads, and where to. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass

from vitcod_cli.artifacts.hub_settings import HubSettings
from vitcod_cli.settings import Settings, required, setting


@dataclass(frozen=True, kw_only=True)
class PushOptions(Settings, panel="Output"):
    """Options of ``vitcod push``."""

    source: str = required(
        "A checkpoint of ours, or the folder of compress or of a fine-tuning run.",
        "name the checkpoint to upload.",
        positional=True,
        metavar="CHECKPOINT",
        flag="CHECKPOINT",
    )
    repo: str = required(
        "Repository of the Hugging Face Hub.",
        "name the repository, as OWNER/NAME.",
        positional=True,
        metavar="OWNER/NAME",
        flag="OWNER/NAME",
    )
    private: bool = setting(False, "Make a repository that isn't there yet private.")

    @property
    def hub(self) -> HubSettings:
        """The same as ``--push-to-hub`` has it."""
        return HubSettings(push_to_hub=self.repo, hub_private=self.private)
