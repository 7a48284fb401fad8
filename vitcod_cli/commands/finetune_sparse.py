"""``vitcod finetune-sparse``: step 4, recover accuracy under the fixed mask."""

from __future__ import annotations

from vitcod_cli.artifacts.run_directory import OutputSettings
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.commands.common import InitFromOption, JsonOption, MaskOption
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.training.recipe import SparseRecipe


def finetune_sparse(
    *,
    init_from: InitFromOption = None,
    mask: MaskOption = None,
    calibration: CalibrationSettings,
    model: ModelSettings,
    data: DataSettings,
    augmentation: AugmentationSettings,
    recipe: SparseRecipe,
    runtime: RuntimeSettings,
    output: OutputSettings,
    json: JsonOption = False,
) -> None:
    """Step 4: fine-tune the model under a fixed sparse attention mask.

    The checkpoints hold the mask too, so that a sparse model is one file.
    """
    if init_from is None:
        raise VitcodError("--init-from is needed: name the weights of the dense or low-rank model.")
    from vitcod_cli.cli.console import console
    from vitcod_cli.commands.compression import Compression, dense_copy
    from vitcod_cli.commands.fine_tuning import FineTuning, load_teacher, open_images
    from vitcod_cli.model.build import keep_mask
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start

    reporter = console()
    with start(runtime) as place:
        network = load_model(
            model, init_from, flag="--init-from", drop_path=recipe.drop_path, reporter=reporter, mask=mask
        )
        if keep_mask(network) is None:
            raise VitcodError(
                f"--mask is needed: --init-from {init_from} holds no mask; make one with vitcod gen-mask."
            )
        images = open_images(network, data, reporter)
        distilled = recipe.distill_from is not None
        teacher = load_teacher(recipe, network, reporter) if distilled else dense_copy(network)
        assert teacher is not None
        before = Compression(
            model=network,
            teacher=teacher,
            teacher_flag="--distill-from" if distilled else "--init-from",
            lowrank=None,
            scope="block",
            calibration=calibration,
            workers=data.workers,
            images=images,
            runtime=place,
            reporter=reporter,
        ).run
        FineTuning(
            command="finetune-sparse",
            model=model,
            data=data,
            augmentation=augmentation,
            recipe=recipe,
            runtime=place,
            output=output,
            options={"init_from": init_from, "mask": mask, **calibration.to_dict()},
            sources={"init_from": init_from, "mask": mask},
            json=json,
        ).run(network, images, reporter, before, teacher if distilled else None)
