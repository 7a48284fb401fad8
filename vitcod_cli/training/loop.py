"""Epoch after epoch: steps, evaluation, checkpoints, metrics, and what to do when something happens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from vitcod_cli import distributed
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.data.loaders import TrainLoader
from vitcod_cli.data.waiting import Waiting
from vitcod_cli.errors import Interrupted, VitcodError
from vitcod_cli.evaluation.evaluators import Evaluator, Score, line_of
from vitcod_cli.model.layers import recording_reconstruction
from vitcod_cli.model.load import save_model
from vitcod_cli.reporting import Progress, Reporter
from vitcod_cli.runtime import Runtime
from vitcod_cli.signals import StopRequest, exit_code
from vitcod_cli.training.loggers import Loggers, open_loggers
from vitcod_cli.training.position import Best, Position
from vitcod_cli.training.recipe import Recipe
from vitcod_cli.training.run_state import RunState
from vitcod_cli.training.schedule import EpochSchedule
from vitcod_cli.training.step import Batch, Outcome, Stepper


@dataclass(kw_only=True)
class Loop:
    """The run of a training from any :class:`Position` to its end.

    Attributes:
        provenance: how the checkpoints of this run were made; goes into each of them.
        describe: the name of a training image, by its index.
    """

    recipe: Recipe
    runtime: Runtime
    run_directory: RunDirectory
    reporter: Reporter
    provenance: Mapping[str, Any]
    stop: StopRequest
    train: TrainLoader
    evaluator: Evaluator
    describe: Callable[[int], str]
    stepper: Stepper
    schedule: EpochSchedule
    state: RunState

    def __post_init__(self) -> None:
        self.steps_per_epoch = len(self.train) // self.recipe.accumulate_steps
        self.model, self.ema = self.stepper.trained.model, self.stepper.trained.ema
        self.position = Position()
        self._loggers = Loggers(self.reporter)

    def run(self, position: Position) -> Position:
        """Train to the end, and return how far that was."""
        self.position = position
        # The first state takes the place of an earlier run, whose logs are not to be gone on with.
        if position == Position():
            self.state.save(position)
        self.run_directory.begin()
        self.run_directory.drop_calibration()
        if distributed.is_main():
            evaluated = position.epoch > 0 or position.last is not None  # --epochs 0 logs an epoch 0
            self.run_directory.keep_epochs(position.epoch if evaluated else -1)
        names = self.recipe.loggers if distributed.is_main() else []
        folder, parameters = self.run_directory.path, self.state.hyper_parameters
        first = self._first_step()
        with open_loggers(names, folder, parameters, self.reporter, first) as self._loggers:
            self._epochs()
            if self.position.last is None:  # --epochs 0
                self._evaluate({"epoch": 0})
            self.state.save(self.position)
        return self.position

    def _first_step(self) -> int:
        """The first step (from 0) that is logged from here on; an epoch's figures stand where the next begins."""
        position = self.position
        logged = position.between_epochs and not position.trained and position.last is not None
        return position.updates + logged

    def _epochs(self) -> None:
        if self.position.epoch >= self.recipe.total_epochs > 0:
            self.reporter.info("All epochs are trained already.")
        while self.position.epoch < self.recipe.total_epochs:
            if self.position.step == 0 and self._max_steps_done:
                return
            self._finish_epoch(self._train_epoch())
            if not self.position.trained:  # --max-steps ended it
                return
            self.position = self.position.next_epoch()

    @property
    def _max_steps_done(self) -> bool:
        """Whether ``--max-steps`` are done."""
        return self.recipe.max_steps is not None and self.position.updates >= self.recipe.max_steps

    # -- training -----------------------------------------------------------------------------

    def _train_epoch(self) -> dict[str, Any]:
        """The steps of the epoch that are left; returns its learning rate and speed."""
        epoch, before = self.position.epoch, self.position.step
        batch = self.recipe.global_batch(distributed.world_size())
        images = (self.steps_per_epoch - before) * batch
        lr = self.schedule.set_epoch(epoch)
        name = f"epoch {epoch + 1}/{self.recipe.total_epochs}"
        start = time.monotonic()
        self.model.train()
        waited = 0.0
        if not self.position.trained and images:
            with (
                recording_reconstruction(self.model, self.recipe.recon_weight > 0),
                self.reporter.progress(name, total=images, unit="images") as progress,
            ):
                waited = self._steps(progress, lr)
        self.runtime.synchronize()
        seconds = max(time.monotonic() - start, 1e-9)  # a coarse clock may stand still
        speed = (self.position.step - before) * batch / seconds
        # Before the evaluation: from here on, an interruption costs no training.
        self.state.save(self.position)
        return {"lr": lr, "seconds": seconds, "images_per_second": speed, "loader_share": waited}

    def _steps(self, progress: Progress, lr: float) -> float:
        """Steps to the end of the epoch, or to ``--max-steps``; the share of time they waited for images."""
        self.train.set_epoch(self.position.epoch, self.position.step * self.recipe.accumulate_steps)
        waiting = Waiting(self.train)
        batches = iter(waiting)
        self._loggers.restart_clock()
        for step in range(self.position.step, self.steps_per_epoch):
            if self._max_steps_done:
                break
            indices: list[Tensor] = []
            outcome = self.stepper(self._next(batches, indices), self.position.epoch, step)
            self._advance(outcome, step, indices)
            progress.advance(outcome.sums[3], loss=outcome.loss, lr=lr)
            figures = {"train_loss": outcome.loss, "lr": lr}
            self._loggers.log_step(figures, self.position.updates - 1, outcome.sums[3])
            # One process alone needs no agreement: it may stop a step earlier.
            request = outcome if distributed.is_distributed() else self.stop
            if request.interrupted or request.terminated:
                self._stop(interrupted=request.interrupted)
            self.state.save_if_due(self.position)
        return waiting.share

    def _next(self, batches: Iterator[Batch], indices: list[Tensor]) -> Iterator[Batch]:
        """The batches of one step; leaves behind which images they hold."""
        for batch in islice(batches, self.recipe.accumulate_steps):
            indices.append(batch[2])
            yield batch

    def _advance(self, outcome: Outcome, step: int, indices: list[Tensor]) -> None:
        """Move the position behind ``step``; one whose loss isn't finite is skipped, or ends the run.

        Args:
            indices: of this process's images in the step.
        """
        before = self.position
        done = before.changed(step=step + 1, updates=before.updates + 1, trained=step + 1 == self.steps_per_epoch)
        if outcome.finite:
            sums = before.sums or [0.0] * len(outcome.sums)
            self.position = done.changed(sums=[a + b for a, b in zip(sums, outcome.sums, strict=True)])
            return
        names = [] if outcome.finite_here else [self.describe(int(i)) for part in indices for i in part]
        names = [name for part in distributed.gather_objects(names) for name in part]
        at = f"step {step + 1} of epoch {before.epoch + 1}"
        where = f"The loss is not finite in {at}, with the images {_some(names)}"
        if before.skipped >= self.recipe.skip_nonfinite:
            self._give_up(where)
        self.position = done.changed(skipped=before.skipped + 1)
        self.reporter.warn(f"{where}; skipped ({self.position.skipped} of --skip-nonfinite so far).")

    def _give_up(self, where: str) -> NoReturn:
        """End the run in front of a step whose loss isn't finite; the weights are those before it."""
        if distributed.is_main() and self.stepper.trained.is_finite():
            self.state.save(self.position)
        distributed.barrier()
        raise VitcodError(
            f"{where}. {self.state.last_good()} Go on from it with --resume and a lower --lr, --clip-grad, "
            "another --precision, or --skip-nonfinite N."
        )

    def _stop(self, *, interrupted: bool) -> NoReturn:
        """Save and end the run, on all processes alike."""
        self.state.save(self.position)
        distributed.barrier()
        self._warn_stopped(interrupted=interrupted)
        raise Interrupted(exit_code(terminated=not interrupted))

    def _warn_stopped(self, *, interrupted: bool) -> None:
        self.reporter.warn(
            f"Stopped by {'Ctrl-C' if interrupted else 'SIGTERM'} after step {self.position.step} of epoch "
            f"{self.position.epoch + 1}; the state is saved in {self.state.file.path}. To go on, start the same "
            "command with --resume (and without --overwrite)."
        )

    # -- after the steps ----------------------------------------------------------------------

    def _finish_epoch(self, metrics: dict[str, Any]) -> None:
        number = self.position.epoch + 1
        total, task, recon, images = self.position.sums or [math.nan, math.nan, math.nan, 1.0]
        losses = {"train_loss": total, "train_task_loss": task, "train_recon_loss": recon}
        metrics = {"epoch": number, **{name: value / images for name, value in losses.items()}, **metrics}
        if number == self.recipe.total_epochs or self._max_steps_done or number % self.recipe.eval_every == 0:
            self._evaluate(metrics)
        else:
            self._save_checkpoint(self.run_directory.last, self.model, metrics["epoch"])
            self._log(metrics)

    def _evaluate(self, metrics: dict[str, Any]) -> None:
        """Evaluate raw and EMA weights, write the checkpoints, log ``metrics`` with the evaluations."""
        candidates = [(self.model, False)]
        if self.ema is not None and self.position.updates:  # else the two are the same
            candidates.append((self.ema.module, True))
        improved = None
        for module, ema in candidates:
            score = self._score_of(module, "eval of the EMA weights" if ema else "eval")
            metrics |= _named(score, "ema_" if ema else "")
            if not ema:
                self.position = self.position.changed(last=score)
            best = self.position.best
            if best is None or score.rank > best.evaluation.rank:
                improved = module
                self.position = self.position.changed(best=Best(score, metrics["epoch"], ema))
        if self.evaluator.beside is not None:
            metrics |= _named(self.evaluator.beside[1], "reference_")
        self._save_checkpoint(self.run_directory.last, self.model, metrics["epoch"], self.position.last)
        if improved is not None and self.position.best is not None:
            best_score = self.position.best.evaluation
            self._save_checkpoint(self.run_directory.best, improved, metrics["epoch"], best_score)
        self._log(metrics)
        self._report(metrics, improved is not None)

    def _score_of(self, module: nn.Module, description: str) -> Score:
        try:
            with self.stop.at_once():
                return self.evaluator(module, description)
        except Interrupted:
            self._warn_stopped(interrupted=self.stop.interrupted)
            raise

    def _save_checkpoint(self, path: Path, module: nn.Module, epoch: int, score: Score | None = None) -> None:
        if distributed.is_main():
            self.run_directory.check()
            ema = module is not self.model
            metrics = {} if score is None else _named(score)
            save_model(path, module, {**self.provenance, "epoch": epoch, "ema": ema, **metrics})

    def _log(self, metrics: dict[str, Any]) -> None:
        metrics["memory_mb"] = round(self.runtime.peak_memory() / 2**20, 1)
        metrics = {name: _finite(value) for name, value in metrics.items()}
        self.run_directory.log(**metrics)
        self._loggers.log(metrics, metrics["epoch"], self.position.updates)

    def _report(self, metrics: dict[str, Any], improved: bool) -> None:
        assert self.position.last is not None
        trained = metrics["epoch"] > 0
        what = f"Epoch {metrics['epoch']}" if trained else "Without training"
        parts = [f"{what}: {line_of(self.position.last, self.evaluator.beside)}"]
        if "train_loss" in metrics:
            parts.append(f"train loss {metrics['train_loss']:.3f}")
        if "ema_acc1" in metrics:
            parts.append(f"EMA weights Acc@1 {metrics['ema_acc1']:.3f}")
        if improved and trained and self.position.best is not None:
            parts.append(f"the {'EMA' if self.position.best.ema else 'raw'} weights are the best so far")
        self.reporter.info(", ".join(parts))


def _named(score: Score, prefix: str = "") -> dict[str, float]:
    """The metrics of a score; names of the EMA weights' begin with ``ema_``, of the reference's ``reference_``."""
    return {f"{prefix}{name}": value for name, value in score.to_dict().items() if name != "images"}


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
