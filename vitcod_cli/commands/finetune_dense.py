"""``vitcod finetune-dense``: the plain model, baseline and teacher of the others."""

from __future__ import annotations

from vitcod_cli.artifacts.run_directory import OutputSettings
from vitcod_cli.commands.common import InitFromOption, JsonOption
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.runtime import RuntimeSettings
from vitcod_cli.training.recipe import DenseRecipe


def finetune_dense(
    *,
    init_from: InitFromOption = None,
    model: ModelSettings,
    data: DataSettings,
    augmentation: AugmentationSettings,
    recipe: DenseRecipe,
    runtime: RuntimeSettings,
    output: OutputSettings,
    json: JsonOption = False,
) -> None:
    """Train or fine-tune the plain model, as DeiT does.

    Without --init-from, the --model starts from random weights. The data set decides how many
    classes the model has, unless --num-classes does.
    """
    from vitcod_cli.cli.console import console
    from vitcod_cli.commands.fine_tuning import FineTuning, open_images
    from vitcod_cli.data.datasets import open_dataset
    from vitcod_cli.model.load import load_model
    from vitcod_cli.runtime import start

    reporter = console()
    with start(runtime) as place:
        classes = model.num_classes or open_dataset(data, "train", num_classes=None, reporter=reporter).num_classes
        network = load_model(
            model.changed(num_classes=classes),
            init_from,
            flag="--init-from",
            drop_path=recipe.drop_path,
            reporter=reporter,
        )
        FineTuning(
            command="finetune-dense",
            model=model,
            data=data,
            augmentation=augmentation,
            recipe=recipe,
            runtime=place,
            output=output,
            options={"init_from": init_from},
            sources={"init_from": init_from},
            json=json,
        ).run(network, open_images(network, data, reporter), reporter)
