"""The plain model: baseline and teacher of the others."""

from __future__ import annotations

from vitcod_cli.calibration.saved import forget_calibration
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.images import ImageData
from vitcod_cli.data.splits import Images
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import start
from vitcod_cli.steps.options import DenseOptions
from vitcod_cli.steps.setup import check_options, load_teacher, open_run, stoppable
from vitcod_cli.training.result import FitResult
from vitcod_cli.training.trainer import prepare


def finetune_dense(options: DenseOptions, reporter: Reporter = QUIET) -> FitResult:
    """Train or fine-tune the plain model, as DeiT does.

    The data set decides how many classes the model has, unless ``num_classes`` does.

    Raises:
        VitcodError: if options, weights and data don't go together, or something can't be read or written.
    """
    with stoppable(reporter), start(options.runtime) as runtime:
        check_options(options)
        if options.model.num_classes == 0:
            raise VitcodError(
                "--num-classes 0 leaves no head to train; leave it out, and the data set says how many classes "
                "there are."
            )
        train = open_dataset(options.data, "train", num_classes=options.model.num_classes, reporter=reporter)
        train.check_countable("--train-split")
        model = load_model(
            options.model.changed(num_classes=options.model.num_classes or _classes_of(train)),
            options.init_from,
            flag="--init-from",
            drop_path=options.recipe.drop_path,
            reporter=reporter,
        )
        val = open_dataset(options.data, "val", num_classes=model.num_classes, train=train, reporter=reporter)
        teacher = load_teacher(options.recipe, model, reporter)
        images = Images(train, val, preprocess_of(model, options.data), train)
        training = prepare(model, images, options, teacher=teacher, runtime=runtime, reporter=reporter)
        with open_run("finetune-dense", model, options, {"init_from": options.init_from}, reporter) as run:
            forget_calibration(run, reporter)
            return training.run(run)


def _classes_of(train: ImageData) -> int | None:
    """How many classes the data set gives the model: None where it doesn't know."""
    return train.num_classes if train.labelled else None
