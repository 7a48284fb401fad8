"""``vitcod finetune-lowrank``: step 1, Q and K pass through a head auto-encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vitcod_cli.artifacts.model_config import SvdType
from vitcod_cli.artifacts.run_directory import OutputSettings
from vitcod_cli.commands.common import InitFromOption, JsonOption
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.training.recipe import LowRankRecipe

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SvdTypeOption = Annotated[
    SvdType,
    typer.Option("--svd-type", help="Which of Q and K pass through a head auto-encoder.", rich_help_panel="Model"),
]


def finetune_lowrank(
    *,
    init_from: InitFromOption = None,
    svd_type: SvdTypeOption = "mix_head_fc_qk",
    model: ModelSettings,
    data: DataSettings,
    augmentation: AugmentationSettings,
    recipe: LowRankRecipe,
    runtime: RuntimeSettings,
    output: OutputSettings,
    json: JsonOption = False,
) -> None:
    """Step 1: squeeze the heads of Q and K through a small auto-encoder, and fine-tune.

    A checkpoint that is low-rank already is fine-tuned as it is.
    """
    if init_from is None:
        raise VitcodError("--init-from is needed: name the weights of the dense model.")
    from vitcod_cli.commands.console import console
    from vitcod_cli.commands.fine_tuning import FineTuning, open_images
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start

    reporter = console()
    with start(runtime) as place:
        network = load_model(model, init_from, flag="--init-from", drop_path=recipe.drop_path, reporter=reporter)
        images = open_images(network, data, reporter)
        _add_auto_encoders(network, svd_type, init_from)
        FineTuning(
            command="finetune-lowrank",
            model=model,
            data=data,
            augmentation=augmentation,
            recipe=recipe,
            runtime=place,
            output=output,
            options={"init_from": init_from, "svd_type": svd_type},
            sources={"init_from": init_from},
            json=json,
        ).run(network, images, reporter)


def _add_auto_encoders(network: VisionTransformer, svd_type: SvdType, source: str) -> None:
    from vitcod_cli.model.build import attentions, model_config

    config = model_config(network)
    if config.svd_type == svd_type:
        return
    if config.svd_type != "none":
        raise VitcodError(
            f"--init-from {source} is low-rank already (--svd-type {config.svd_type}); start from the dense model."
        )
    for attention in attentions(network):
        attention.add_auto_encoder(svd_type)
    network.vitcod_config = config.changed(svd_type=svd_type)  # type: ignore[assignment]
