"""What several commands share: option types, and the way from a loaded model to its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vitcod_cli.data.settings import DataSettings

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

    from vitcod_cli.data.preprocess import Preprocess

InitFromOption = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="FILE",
        help="Weights to start from: a file (ours, timm's or the published code's), an https:// address, or timm "
        "for the pretrained weights of --model.",
        rich_help_panel="Model",
    ),
]

MaskOption = Annotated[
    str | None,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="Mask to apply: from gen-mask, or a published .npy.",
        rich_help_panel="Model",
    ),
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of the line.", rich_help_panel="Output")
]


def preprocess_of(model: VisionTransformer, data: DataSettings) -> Preprocess:
    """How pictures are brought into the form that ``model`` takes."""
    from vitcod_cli.data.preprocess import preprocess_for
    from vitcod_cli.model.build import input_channels, model_config

    size = (input_channels(model), *model_config(model).img_size)
    return preprocess_for(cast("dict[str, Any]", model.pretrained_cfg), size, data)
