"""Step 4: recover accuracy under the fixed mask."""

from __future__ import annotations

from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.calibration.blockwise import calibrate
from vitcod_cli.calibration.checks import checked_teacher
from vitcod_cli.calibration.saved import SavedCalibration, fingerprint, forget_calibration
from vitcod_cli.data.splits import Images
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import has_mask
from vitcod_cli.model.load import load_model
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.signals import StopRequest
from vitcod_cli.steps.options import SparseOptions
from vitcod_cli.steps.setup import (
    check_calibration,
    check_options,
    check_task,
    dense_copy,
    load_teacher,
    open_images,
    open_run,
    read_calibration_images,
    stoppable,
)
from vitcod_cli.training.result import FitResult
from vitcod_cli.training.trainer import prepare


def finetune_sparse(options: SparseOptions, reporter: Reporter = QUIET) -> FitResult:
    """Fine-tune the model under a fixed sparse attention mask.

    Every block is fitted to the model without the mask (or to ``distill_from``) first, without labels.
    The checkpoints hold the mask too, so that a sparse model is one file.

    Raises:
        VitcodError: if options, weights, mask and data don't go together, or something can't be read or written.
    """
    with stoppable(reporter) as stop, start(options.runtime) as runtime:
        check_options(options)
        model = load_model(
            options.model,
            options.init_from,
            flag="--init-from",
            drop_path=options.recipe.drop_path,
            reporter=reporter,
            mask=options.mask,
        )
        _require_mask(model, options.init_from)
        check_task(model, options.recipe.epochs)
        images = open_images(model, options.data, options.calibration, reporter)
        teacher = load_teacher(options.recipe, model, reporter)
        reference = None
        if options.calibration.enabled and options.recipe.distill_from is not None:
            reference = checked_teacher(model, teacher, "--distill-from")
        needs_judge = not options.recipe.epochs or not images.val.labelled
        judge = dense_copy(model) if needs_judge and teacher is None else None
        training = prepare(
            model, images, options, teacher=teacher, judge=judge, runtime=runtime, reporter=reporter
        )
        sources = {"init_from": options.init_from, "mask": options.mask}
        with open_run("finetune-sparse", model, options, sources, reporter) as run:
            if options.calibration.enabled and not run.resumes:
                # If not the judge, it is held by the call alone: training has no use for a second model.
                _calibrate(
                    model,
                    reference or judge or dense_copy(model),
                    images,
                    options=options,
                    runtime=runtime,
                    reporter=reporter,
                    run=run,
                    stop=stop,
                )
            else:
                forget_calibration(run, reporter)
            return training.run(run)


def _require_mask(model: Transformer, source: str) -> None:
    if not has_mask(model):
        raise VitcodError(f"--mask is needed: --init-from {source} holds no mask; make one with vitcod gen-mask.")


def _calibrate(
    model: Transformer,
    reference: Transformer,
    images: Images,
    *,
    options: SparseOptions,
    runtime: Runtime,
    reporter: Reporter,
    run: RunDirectory,
    stop: StopRequest,
) -> None:
    """Fit block after block of ``model`` to those of ``reference``, without labels."""
    check_calibration(model, images, options.calibration, runtime, run.path)
    sample = read_calibration_images(images, options.calibration, options.data, runtime, reporter)
    runtime.prepare(reference)
    running = runtime.for_training
    identity = fingerprint("finetune-sparse", model, reference, sample, running, options.calibration)
    saved = SavedCalibration(run, model, identity, stop, reporter)
    saved.resume()
    calibrate(
        model,
        reference,
        sample,
        options.calibration,
        scope="block",
        runtime=running,
        reporter=reporter,
        finished=saved.blocks,
        on_fit=saved.add_fit,
        stop=stop,
        folder=run.path,
    )
