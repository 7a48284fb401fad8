"""Accuracy and loss of a model, at any point between the steps."""

from __future__ import annotations

from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.waiting import Waiting
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation import accuracy as measuring
from vitcod_cli.evaluation.accuracy import Evaluation
from vitcod_cli.model.layers import prepare_inference
from vitcod_cli.model.load import load_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import start
from vitcod_cli.steps.options import EvalOptions


def evaluate(options: EvalOptions, reporter: Reporter = QUIET) -> Evaluation:
    """Acc@1, Acc@5 and loss of a checkpoint on one split; every image counts once, on one process or many.

    Raises:
        VitcodError: if options, weights and data don't go together, or something can't be read.
    """
    with start(options.runtime) as runtime:
        model = load_model(
            options.model, options.checkpoint, flag="--checkpoint", reporter=reporter, mask=options.mask
        )
        prepare_inference(runtime.prepare(model), runtime.dtype)
        images = open_dataset(options.data, options.split, num_classes=model.num_classes, reporter=reporter)
        if not images.labelled:
            raise VitcodError("--dataset images has no labels to evaluate by; give labelled images.")
        loader = Waiting(
            eval_loader(
                images,
                preprocess_of(model, options.data),
                batch_size=options.batch_size,
                workers=options.data.workers,
                device=runtime.device,
                reporter=reporter,
            )
        )
        runtime.advise(reporter)
        result = measuring.evaluate(runtime.compiled(model), loader, runtime, reporter)
    reporter.info(f"The model waited {loader.share:.0%} of the time for images.")
    return result
