"""Which way to convert, and where to. Imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitcod_cli.model.settings import ModelSettings, mask_setting
from vitcod_cli.settings import Settings, required, setting

Form = Literal["vitcod", "reference"]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Settings, panel="Output"):
    """Options of ``vitcod convert``."""

    source: str = required(
        "A checkpoint, attention map or mask, published or ours.", "name the file to convert.", positional=True
    )
    to: Form = setting("vitcod", "Our safetensors, or the published .pth and .npy.")
    output: str | None = setting(
        None,
        "File to write (.npz: arrays for numpy alone), or folder. The name ends as what is written does; one that "
        "ends in / is a folder's.",
        metavar="FILE",
        show_default="beside the source",
    )
    overwrite: bool = setting(False, "Replace the file when it is there already.")
    mask: str | None = mask_setting(
        "Mask that a published checkpoint was trained under; left out, the one it names, when that is beside it."
    )
    model: ModelSettings = field(default_factory=ModelSettings)
