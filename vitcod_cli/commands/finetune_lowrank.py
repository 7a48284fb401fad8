"""``vitcod finetune-lowrank``: step 1, Q and K pass through a head auto-encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcod_cli.artifacts.run_directory import OutputSettings
from vitcod_cli.calibration.settings import LowRankCalibrationSettings
from vitcod_cli.commands.common import InitFromOption, JsonOption
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.training.recipe import LowRankRecipe

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


def finetune_lowrank(
    *,
    init_from: InitFromOption = None,
    lowrank: LowRankSettings,
    calibration: LowRankCalibrationSettings,
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
    from vitcod_cli.cli.console import console
    from vitcod_cli.commands.compression import Compression, dense_copy
    from vitcod_cli.commands.fine_tuning import FineTuning, open_images
    from vitcod_cli.model.build import model_config
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start

    reporter = console()
    with start(runtime) as place:
        network = load_model(model, init_from, flag="--init-from", drop_path=recipe.drop_path, reporter=reporter)
        images = open_images(network, data, reporter)
        before = None
        if model_config(network).svd_type != lowrank.svd_type:
            dense = dense_copy(network)
            _add_auto_encoders(network, lowrank, init_from)
            before = Compression(
                model=network,
                teacher=dense,
                teacher_flag="--init-from",
                lowrank=lowrank,
                scope="attention",
                calibration=calibration,
                workers=data.workers,
                images=images,
                runtime=place,
                reporter=reporter,
            ).run

        FineTuning(
            command="finetune-lowrank",
            model=model,
            data=data,
            augmentation=augmentation,
            recipe=recipe,
            runtime=place,
            output=output,
            options={"init_from": init_from, **lowrank.to_dict(), **calibration.to_dict()},
            sources={"init_from": init_from},
            json=json,
        ).run(network, images, reporter, before)


def _add_auto_encoders(network: VisionTransformer, lowrank: LowRankSettings, source: str) -> None:
    from vitcod_cli.lowrank.initialise import add_auto_encoders
    from vitcod_cli.model.build import model_config

    made = model_config(network).svd_type
    if made != "none":
        raise VitcodError(
            f"--init-from {source} is low-rank already (--svd-type {made}); start from the dense model."
        )
    add_auto_encoders(network, lowrank)
