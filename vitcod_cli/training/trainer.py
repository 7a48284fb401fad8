"""A model, images and a recipe in; trained weights, metrics and a state that is never lost out.

:func:`prepare` checks everything that can be checked, and :meth:`Training.run` trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.mixup import Mixup
from timm.models.deit import VisionTransformerDistilled
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vitcod_cli import distributed
from vitcod_cli.artifacts.files import first_line
from vitcod_cli.artifacts.publish import publish
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.data.augmentation import AugmentationSettings
from vitcod_cli.data.loaders import TrainLoader, eval_loader, train_loader
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.data.splits import Images
from vitcod_cli.errors import VitcodError
from vitcod_cli.evaluation.evaluators import Evaluator, Reference, evaluator_for
from vitcod_cli.model.families import Transformer
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime
from vitcod_cli.signals import StopRequest
from vitcod_cli.training.loop import Loop
from vitcod_cli.training.losses import Criterion, make_mixup
from vitcod_cli.training.network import TrainingModel, over_processes
from vitcod_cli.training.optimizer_layout import Layout, optimizer_layout
from vitcod_cli.training.options import FineTuneOptions
from vitcod_cli.training.position import Position
from vitcod_cli.training.preflight import check_parts, check_recipe, check_teacher
from vitcod_cli.training.recipe import Recipe
from vitcod_cli.training.result import FitResult
from vitcod_cli.training.run_state import RunState, StateFile, hyper_parameters
from vitcod_cli.training.schedule import EpochSchedule, make_optimizer
from vitcod_cli.training.space import check_space
from vitcod_cli.training.step import Stepper
from vitcod_cli.training.trained import Trained


def prepare(
    model: Transformer,
    images: Images,
    options: FineTuneOptions,
    *,
    runtime: Runtime,
    reporter: Reporter,
    teacher: nn.Module | None = None,
    judge: nn.Module | None = None,
) -> Training:
    """A training of ``model``, once all that can be checked is: nothing is computed or written yet.

    Args:
        model: built with the recipe's drop-path, weights loaded, mask set. It is moved to the device; its
            weights may still be changed before the training begins.
        runtime: of the evaluations; steps are taken in its :attr:`~vitcod_cli.runtime.Runtime.for_training`.
        teacher: for ``--distill`` and distillation without labels. It gets the images as its own
            ``pretrained_cfg`` normalises them.
        judge: the model as it was, which takes images as ``model`` does. Unless there is a teacher, it is what the
            model is compared with where the images have no labels, or the model no head; and whose score stands
            beside that of a model that isn't trained.

    Raises:
        VitcodError: if settings, images, models and this machine don't go together.
    """
    recipe, augmentation = options.recipe, options.augmentation
    runtime.announce_precision(reporter)
    check_recipe(recipe, augmentation)
    check_parts(model, images, recipe, augmentation, teacher)
    with _on_device(runtime):
        runtime.prepare(model)
        teacher = _prepared_teacher(teacher, images.preprocess, runtime)
    if teacher is not None:
        check_teacher(teacher, recipe, images.preprocess, runtime)
    layout = optimizer_layout(model, recipe, runtime.device)
    check_space(Path(options.output.output_dir), model, recipe, layout, reporter)
    loading: dict[str, Any] = {"workers": options.data.workers, "device": runtime.device, "reporter": reporter}
    train = train_loader(
        images.train,
        images.preprocess,
        augmentation,
        batch_size=recipe.batch_size,
        seed=runtime.settings.seed,
        **loading,
    )
    if len(train) < recipe.accumulate_steps:
        raise VitcodError(
            f"--accumulate-steps {recipe.accumulate_steps} is more than the {len(train)} batches of an epoch; "
            "lower it."
        )
    val = eval_loader(images.val, images.preprocess, batch_size=recipe.eval_batch, **loading)
    evaluator = evaluator_for(
        model.num_classes,
        val,
        _reference(teacher, judge, runtime),
        labelled=images.val.labelled,
        beside=recipe.epochs == 0,
        runtime=runtime,
        reporter=reporter,
    )
    return Training(
        model=model,
        images=images,
        options=options,
        runtime=runtime,
        reporter=reporter,
        train=train,
        evaluator=evaluator,
        criterion=Criterion(recipe, augmentation, teacher),
        mixup=make_mixup(augmentation, model.num_classes),
        layout=layout,
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training whose parts go together, see :func:`prepare`; :meth:`run` is what takes time."""

    model: Transformer
    images: Images
    options: FineTuneOptions
    runtime: Runtime
    reporter: Reporter
    train: TrainLoader
    evaluator: Evaluator
    criterion: Criterion
    mixup: Mixup | None
    layout: Layout

    def run(self, run: RunDirectory) -> FitResult:
        """Train the model (in place) and leave checkpoints, metrics and state in ``run``.

        The state is saved at the start, behind every epoch, every ``--save-every`` minutes and when a
        signal stops the run. When ``run.resumes``, training goes on from it and ends, in float32 on
        the CPU, with the very bits of an uninterrupted run.

        Raises:
            VitcodError: if the state in the folder can't be gone on from, the loss is no longer finite,
                or something can't be written.
            Interrupted: after a signal; the state is saved.
        """
        model, recipe, runtime = self.model, self.options.recipe, self.runtime
        if isinstance(model, VisionTransformerDistilled):
            model.set_distilled_training(self.criterion.teacher is not None)
        network = over_processes(TrainingModel(model), runtime)
        trained = self._trained()
        state = self._state(run, trained)
        position = state.load(self.reporter) if run.resumes else Position()
        runtime.compiled(model)
        if trained.ema is not None:
            runtime.compiled(trained.ema.module)
        with StopRequest() as stop:
            loop = Loop(
                recipe=recipe,
                runtime=runtime,
                run_directory=run,
                reporter=self.reporter,
                provenance=run.provenance,
                stop=stop,
                train=self.train,
                evaluator=self.evaluator,
                describe=self.images.train.describe,
                stepper=Stepper(
                    network=network,
                    trained=trained,
                    criterion=self.criterion,
                    mixup=self.mixup,
                    recipe=recipe,
                    runtime=runtime.for_training,
                    stop=stop,
                ),
                schedule=EpochSchedule(trained.optimizer, recipe),
                state=state,
            )
            _announce(loop, model)
            position = loop.run(position)
        result = FitResult.of(position, run, self.evaluator.beside, self.reporter)
        options = self.options
        publish(
            result.checkpoint,
            options.hub,
            command=["vitcod", str(run.provenance.get("command", "")), *options.arguments(lasting=True)],
            dataset=options.data.data_path or options.data.dataset,
            labelled=self.images.val.labelled,
            reporter=self.reporter,
        )
        return result

    def _trained(self) -> Trained:
        model, recipe = self.model, self.options.recipe
        return Trained(
            model,
            ModelEmaV3(model, decay=recipe.model_ema_decay) if recipe.model_ema else None,
            make_optimizer(model, recipe, recipe.scaled_lr(distributed.world_size())),
            torch.amp.GradScaler(
                self.runtime.device.type, enabled=self.runtime.for_training.dtype == torch.float16
            ),
            self.layout,
        )

    def _state(self, run: RunDirectory, trained: Trained) -> RunState:
        recipe, augmentation = self.options.recipe, self.options.augmentation
        return RunState(
            file=StateFile(run.state, run.begin),
            trained=trained,
            hyper_parameters=hyper_parameters(recipe, augmentation, self.runtime.settings),
            order=_order(recipe, augmentation, self.runtime, self.images),
            minutes=recipe.save_every,
            steps=len(self.train) // recipe.accumulate_steps,
            launches=run.launches,
            check=run.check,
        )


@contextmanager
def _on_device(runtime: Runtime) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError, AssertionError) as error:  # no such device here, or it is full
        raise VitcodError(
            f"--device {runtime.settings.device} can't take the model ({first_line(error)}); use another, "
            "such as cpu."
        ) from error


def _prepared_teacher(teacher: nn.Module | None, preprocess: Preprocess, runtime: Runtime) -> nn.Module | None:
    if teacher is None:
        return None
    teacher = nn.Sequential(Renormalise.for_model(teacher, preprocess), teacher)
    return runtime.prepare(teacher).requires_grad_(False).eval()


def _reference(teacher: nn.Module | None, judge: nn.Module | None, runtime: Runtime) -> Reference | None:
    """What the model is compared with: its teacher, or else the model as it was."""
    if teacher is not None:
        return Reference("teacher", teacher)
    return None if judge is None else Reference("dense", runtime.prepare(judge).eval())


def _order(recipe: Recipe, augmentation: AugmentationSettings, runtime: Runtime, images: Images) -> dict[str, int]:
    """What decides which images a step sees."""
    return {
        "processes": distributed.world_size(),
        "--batch-size": recipe.batch_size,
        "--accumulate-steps": recipe.accumulate_steps,
        "--seed": runtime.settings.seed,
        "training images": len(images.train),
        "repeats": augmentation.repeats,
    }


def _announce(loop: Loop, model: Transformer) -> None:
    """Say what people otherwise get wrong: the real batch, the real learning rate, the real length.

    Without epochs none of it means anything.
    """
    recipe, reporter, processes = loop.recipe, loop.reporter, distributed.world_size()
    if not recipe.epochs:
        return
    batch, lr = recipe.global_batch(processes), recipe.scaled_lr(processes)
    parts = f"{recipe.batch_size} x {processes} process{'es' if processes > 1 else ''}"
    if recipe.accumulate_steps > 1:
        parts += f" x {recipe.accumulate_steps} accumulated"
    scaled = "not scaled" if recipe.unscale_lr else f"{recipe.lr:g} x {batch} / 512"
    ema = f"EMA decay {recipe.model_ema_decay:g}" if recipe.model_ema else "no EMA"
    dtype = str(loop.stepper.runtime.dtype).removeprefix("torch.")
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    reporter.info(
        f"Global batch {batch} ({parts}), learning rate {lr:g} ({scaled}), {loop.steps_per_epoch} steps per "
        f"epoch, {recipe.total_epochs} epochs, {parameters:,} parameters, {ema}, {dtype} on "
        f"{loop.runtime.device}."
    )
    warmup = loop.schedule.warmup_epochs
    if warmup != recipe.warmup_epochs:
        reporter.info(
            f"--warmup-epochs {recipe.warmup_epochs} would fill all {recipe.epochs} epochs: {warmup} instead."
        )
    if lr < recipe.min_lr and recipe.sched == "cosine":
        reporter.warn(
            f"The scaled learning rate {lr:g} is below --min-lr {recipe.min_lr:g}, which is not scaled, so the "
            "schedule rises; lower --min-lr, raise --lr or use --unscale-lr if that isn't meant."
        )
