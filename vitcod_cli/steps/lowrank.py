"""Step 1: Q and K pass through a head auto-encoder (HPCA 2023, section IV-B)."""

from __future__ import annotations

from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.calibration.blockwise import calibrate
from vitcod_cli.calibration.saved import SavedCalibration, fingerprint, forget_calibration
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.splits import Images
from vitcod_cli.errors import VitcodError
from vitcod_cli.lowrank.initialise import LayerReport, add_auto_encoders, initialise
from vitcod_cli.lowrank.moments import collect_moments
from vitcod_cli.lowrank.settings import LowRankSettings
from vitcod_cli.model.build import model_config
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.layers import attentions
from vitcod_cli.model.load import load_model
from vitcod_cli.reporting import QUIET, Reporter
from vitcod_cli.runtime import Runtime, start
from vitcod_cli.signals import StopRequest
from vitcod_cli.steps.options import LowRankOptions
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


def finetune_lowrank(options: LowRankOptions, reporter: Reporter = QUIET) -> FitResult:
    """Squeeze the heads of Q and K through a small auto-encoder, and fine-tune.

    New auto-encoders are fitted to the dense model without labels first: to its attention logits, then
    block after block. A checkpoint that is low-rank already is fine-tuned as it is.

    Raises:
        VitcodError: if options, weights and data don't go together, or something can't be read or written.
    """
    with stoppable(reporter) as stop, start(options.runtime) as runtime:
        check_options(options)
        model = load_model(
            options.model,
            options.init_from,
            flag="--init-from",
            drop_path=options.recipe.drop_path,
            reporter=reporter,
        )
        check_task(model, options.recipe.epochs)
        images = open_images(model, options.data, options.calibration, reporter)
        dense = dense_copy(model) if _is_dense(model, options) else None
        if dense is not None:
            add_auto_encoders(model, options.lowrank)
        teacher = load_teacher(options.recipe, model, reporter)
        needs_judge = not options.recipe.epochs or not images.val.labelled
        judge = (dense or dense_copy(model)) if needs_judge and teacher is None else None
        training = prepare(
            model, images, options, teacher=teacher, judge=judge, runtime=runtime, reporter=reporter
        )
        sources = {"init_from": options.init_from}
        with open_run("finetune-lowrank", model, options, sources, reporter) as run:
            if dense is not None and _needs_images(options) and not run.resumes:
                _fit_auto_encoders(
                    model, dense, images, options=options, runtime=runtime, reporter=reporter, run=run, stop=stop
                )
            else:
                forget_calibration(run, reporter)
            del dense  # training has no use for a second model
            return training.run(run)


def _needs_images(options: LowRankOptions) -> bool:
    """Whether new auto-encoders are fitted to anything before they are trained."""
    return options.lowrank.init != "trunc-normal" or options.calibration.enabled


def _fit_auto_encoders(
    model: Transformer,
    dense: Transformer,
    images: Images,
    *,
    options: LowRankOptions,
    runtime: Runtime,
    reporter: Reporter,
    run: RunDirectory,
    stop: StopRequest,
) -> None:
    """Fit the new auto-encoders of ``model`` to what ``dense`` does, without labels."""
    check_calibration(model, images, options.calibration, runtime, run.path)
    sample = read_calibration_images(images, options.calibration, options.data, runtime, reporter)
    runtime.prepare(dense)
    settings = (options.lowrank, options.calibration)
    identity = fingerprint("finetune-lowrank", model, dense, sample, runtime.for_training, *settings)
    saved = SavedCalibration(run, model, identity, stop, reporter)
    saved.resume()
    if options.lowrank.init != "trunc-normal" and not saved.exists:
        first = sample.first_crops()
        reports = initialise_from(dense, model, first, options.lowrank, runtime=runtime, reporter=reporter)
        saved.add_heads([report.metrics() for report in reports])
    if options.calibration.enabled:
        calibrate(
            model,
            dense,
            sample,
            options.calibration,
            scope="attention",
            runtime=runtime.for_training,
            reporter=reporter,
            finished=saved.blocks,
            on_fit=saved.add_fit,
            stop=stop,
            folder=run.path,
        )


def initialise_from(
    dense: Transformer,
    model: Transformer,
    images: CalibrationImages,
    settings: LowRankSettings,
    *,
    runtime: Runtime,
    reporter: Reporter,
) -> list[LayerReport]:
    """Fit the auto-encoders of ``model`` to the second moments of the tokens of ``dense`` on ``images``."""
    layers = attentions(model)
    if settings.init == "aligned" and not all(layer.foldable for layer in layers):
        reporter.info("The norm on Q and K leaves heads no freedom to rotate: --init pca instead of aligned.")
    with reporter.progress("moments", len(images)) as progress:
        moments = collect_moments(
            dense,
            images.batches(32),
            num_prefix_tokens=model.num_prefix_tokens,
            progress=progress,
            autocast=runtime.autocast,
        )
    with reporter.progress("fit heads", len(layers), unit="blocks") as progress:
        return initialise(model, moments, settings, progress)


def _is_dense(model: Transformer, options: LowRankOptions) -> bool:
    """Whether ``model`` has no auto-encoders yet.

    Raises:
        VitcodError: if it has others than those asked for.
    """
    svd_type = model_config(model).svd_type
    if svd_type not in ("none", options.lowrank.svd_type):
        raise VitcodError(
            f"--init-from {options.init_from} is low-rank already (--svd-type {svd_type}); start from the dense "
            "model."
        )
    return svd_type != options.lowrank.svd_type
