"""Fit a compressed model to its dense teacher block after block, on a few images without labels.

Each block is fed with what the already fitted blocks before it make of the images, and is fitted to
what the teacher's block makes of the teacher's own tokens: it learns to make up for the errors that
reach it, too, and looks ahead: what the teacher's next two blocks would make of its output counts as
much. In late blocks the class token counts most where the head reads it, and of the last one only
what is read. The first half can be fitted as one behind that, see joint_fit.py. In the fit of a block
nothing flows backwards through more than three blocks, so a step costs little of a training step, and
the tokens of all images are kept instead of being computed again, in memory or in a file.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitcod_cli.calibration.block_fit import BlockFit, Goal
from vitcod_cli.calibration.checks import check_shares, step_bytes, tokens_bytes
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.fit import FORWARD_BATCH, FitReport, Scope, between_steps, fitted_parameters
from vitcod_cli.calibration.joint_fit import JointFit
from vitcod_cli.calibration.objective import Objective
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.calibration.token_store import TokenStore
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.renormalise import Renormalise
from vitcod_cli.machine import gigabytes
from vitcod_cli.model.families import Transformer
from vitcod_cli.model.passes import BlockPass, block_passes, tokens_of
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.reporting import Reporter
from vitcod_cli.runtime import Runtime
from vitcod_cli.signals import StopRequest

GIVE_UP = 3
"""Blocks in a row that a fit makes no better on held-out images before the calibration ends: errors of a good
start are lowered in the first blocks, if at all."""
_ROUNDING = 1e-4
"""An error that bfloat16 can make; a block with more has something to gain."""


def calibrate(
    student: Transformer,
    teacher: Transformer,
    images: CalibrationImages,
    settings: CalibrationSettings,
    *,
    scope: Scope,
    runtime: Runtime,
    reporter: Reporter,
    finished: Sequence[FitReport] = (),
    on_fit: Callable[[FitReport], None] = lambda report: None,
    stop: StopRequest | None = None,
    folder: Path | None = None,
    depth: Depth | None = None,
) -> list[FitReport]:
    """Fit ``student``'s blocks in place, first to last; the teacher can be released afterwards.

    Behind the first half of them, where ``settings`` ask for it, these are fitted as one.

    Args:
        student: compressed (auto-encoders, mask), on the runtime's device.
        teacher: the dense (or low-rank) model of the same shape, on the same device; see
            :func:`~vitcod_cli.calibration.checks.checked_teacher`.
        images: calibration images, normalised as ``student`` expects; every process has its share.
        settings: of which ``calibrate_steps`` is at least 1.
        scope: what is fitted: Q, K and the auto-encoders, or everything in the block.
        finished: the reports of the fits that ``student`` holds already.
        on_fit: called with the report of every fit when it is done.
        stop: a signal ends the calibration behind the step, with :class:`~vitcod_cli.errors.Interrupted` in all
            processes.
        folder: for a file of tokens that don't fit into memory; the system's for temporary files by default.
        depth: how the fit changes with depth; None: as it is best.

    Returns:
        One report a block that was tried, and one of the first as one. What does not get better on held-out
        images, or diverges, keeps its best state, with a warning when it diverged, and one when no block got
        better. Behind ``GIVE_UP`` of them in a row the other blocks stay as they are.

    Raises:
        VitcodError: if there are too few images, or a block yields values that are not finite.
    """
    check_shares(images, settings)
    student.eval()
    teacher.eval()
    stop, depth = stop or StopRequest(), depth or Depth()
    store = _store(student, len(images), settings, runtime=runtime, folder=folder, reporter=reporter)
    reports, blocks = list(finished), len(student.blocks)
    # Once: ``finished`` may be the list that ``on_fit`` appends to.
    fitted = sum(report.block is not None for report in finished)
    joined = fitted < len(finished)
    objective = Objective.of(student, scope, depth)
    passes, teacher_passes = objective.passes(student), objective.passes(teacher)
    steps, joint = settings.calibrate_steps, settings.calibrate_joint_steps
    early = depth.early(blocks) if joint else 0

    def goal(index: int, block_pass: BlockPass, target: Tensor) -> Goal:
        target = objective.counted(index, target)
        return Goal(block_pass, target, objective.loss(index, target, runtime.device))

    def keep(report: FitReport, name: str) -> None:
        if report.note:
            reporter.warn(f"{name}: {report.note}")
        reports.append(report)
        on_fit(report)

    with reporter.progress("calibrate", blocks * steps + joint, unit="steps") as progress, stop.deferred():

        def on_step(name: str) -> Callable[[float], None]:
            return lambda error: progress.advance(1, block=f"{name}/{blocks}", error=error)

        walk = walk_blocks(
            student, teacher, images, runtime, ahead=depth.ahead, anew_behind=early, stop=stop, store=store
        )
        for index, tokens in enumerate(walk):
            if index < fitted:
                progress.advance(steps)
            elif _in_vain(reports):
                progress.advance(steps * (blocks - index) + (joint if index < early else 0))
                break
            else:
                stop.where = f" in block {index + 1} of {blocks} of the calibration"
                fit = BlockFit(
                    index=index,
                    parameters=fitted_parameters(student.blocks[index], scope),
                    peak=depth.learning_rate(settings.calibrate_lr, index, blocks, objective.class_tokens),
                    views=len(images),
                    crops=images.crops,
                    steps=steps,
                    settings=settings,
                    runtime=runtime,
                    stop=stop,
                    tokens=tokens.student,
                    teacher_tokens=tokens.entering,
                    goal=goal(index, passes[index], tokens.leaving),
                    ahead=[
                        goal(following, teacher_passes[following], target)
                        for following, target in enumerate(tokens.ahead, index + 1)
                    ],
                )
                keep(fit.run(on_step(f"{index + 1}")), f"Block {index + 1}")
            if index + 1 != early:
                continue
            if joined:
                progress.advance(joint)
                continue
            stop.where = f" in the fit of the first {early} of {blocks} blocks as one"
            together = JointFit.between(
                student, teacher, images, objective, settings, scope=scope, runtime=runtime, stop=stop
            )
            report = together.run(on_step(f"1-{early}"))
            keep(report, f"Blocks 1 to {early}")
            if not report.improved and not report.note:
                reporter.info(
                    f"Blocks 1 to {early} as one became no better on held-out images; they stay as they were."
                )
    stop.where = ""
    _tell_of_success(reports, blocks, reporter)
    return reports


def _store(
    student: Transformer,
    views: int,
    settings: CalibrationSettings,
    *,
    runtime: Runtime,
    folder: Path | None,
    reporter: Reporter,
) -> TokenStore:
    """Where the tokens of ``views`` images of this process go; says so if that is a file."""
    tokens, step = tokens_bytes(student, views, settings), step_bytes(student, views, settings)
    store = TokenStore.choose(tokens, step, runtime.device, folder or Path(tempfile.gettempdir()))
    if store.folder is not None:
        reporter.info(
            f"The tokens of the calibration images don't fit into memory: {gigabytes(tokens)} of them are in a "
            f"temporary file in {store.folder}."
        )
    return store


def _in_vain(reports: Sequence[FitReport]) -> bool:
    """Whether the last blocks have all become no better, so that those behind them won't either."""
    last = reports[-GIVE_UP:]
    return len(last) == GIVE_UP and all(report.before > _ROUNDING and not report.improved for report in last)


def _tell_of_success(reports: list[FitReport], blocks: int, reporter: Reporter) -> None:
    """Say how many blocks were put back as they were; warn if all were, though there was something to gain."""
    reports = [report for report in reports if report.block is not None]
    improved, left = sum(report.improved for report in reports), blocks - len(reports)
    if 0 < improved < blocks:
        others = (
            f"; it ended behind block {len(reports)}, as the last {GIVE_UP} had become no better" if left else ""
        )
        reporter.info(
            f"Calibration made {improved} of {blocks} blocks better on held-out images{others}; the others are as "
            "they were."
        )
    elif any(report.before > _ROUNDING for report in reports) and not improved:
        reporter.warn(
            "Calibration made no block better on held-out images: the weights stay as they were. Try another "
            "--calibrate-lr, more --calibrate-images or more --calibrate-steps."
        )


@dataclass(frozen=True)
class BlockTokens:
    """What enters and leaves one block, of all images; float32 [images, N, C] each.

    Attributes:
        student: the student's tokens that enter the block. entering: the teacher's.
        leaving: what the teacher's block makes of them.
        ahead: what its next blocks make of that, one after the other; none behind the last.
    """

    student: Tensor
    entering: Tensor
    leaving: Tensor
    ahead: Sequence[Tensor]


def walk_blocks(
    student: Transformer,
    teacher: Transformer,
    images: CalibrationImages,
    runtime: Runtime,
    *,
    ahead: int,
    anew_behind: int = 0,
    stop: StopRequest,
    store: TokenStore,
) -> Iterator[BlockTokens]:
    """The tokens of each block, first to last.

    A block is applied to the student's tokens when the next ones are asked for, so that its fit counts; behind the
    last block nothing is asked for. The next tokens lie in the memory of those before.

    Args:
        ahead: how many of the teacher's next blocks are walked through, too.
        anew_behind: behind so many blocks all of them have changed, and the student's tokens are made anew.
    """
    with between_steps(stop), torch.no_grad():
        renormalise = Renormalise.for_model(teacher, preprocess_of(student)).to(runtime.device)
        tokens = embed(student, images.batches(FORWARD_BATCH), len(images), runtime, store)
        renormalised = map(renormalise, images.batches(FORWARD_BATCH))
        entering = embed(teacher, renormalised, len(images), runtime, store)
        passes, teacher_passes = block_passes(student), block_passes(teacher)
        line = deque([entering])  # the teacher's, behind one block after the other
        for block in teacher_passes[: ahead + 1]:
            line.append(store.empty(entering.shape))
            apply_block(block, line[-2], runtime, into=line[-1])
    for index, student_block in enumerate(passes):
        entering, leaving, *further = line
        yield BlockTokens(tokens, entering, leaving, further)
        if index + 1 == len(passes):
            break
        with between_steps(stop):
            if index + 1 == anew_behind:
                embed(student, images.batches(FORWARD_BATCH), len(images), runtime, store, into=tokens)
                for block in passes[:anew_behind]:
                    apply_block(block, tokens, runtime)
            else:
                apply_block(student_block, tokens, runtime)
            spare, furthest = line.popleft(), index + 1 + ahead
            if furthest < len(passes):
                apply_block(teacher_passes[furthest], line[-1], runtime, into=spare)
                line.append(spare)


@torch.no_grad()
def embed(
    model: Transformer,
    batches: Iterable[Tensor],
    count: int,
    runtime: Runtime,
    store: TokenStore,
    *,
    into: Tensor | None = None,
) -> Tensor:
    """The tokens [images, N, C] that enter the first block, of ``count`` images; float32, in ``store``.

    Args:
        into: where they go; by default room is made for them.
    """
    tokens, start = into, 0
    for batch in batches:
        with runtime.autocast():
            part = tokens_of(model, batch)
        if tokens is None:
            tokens = store.empty((count, *part.shape[1:]))
        tokens[start : start + len(part)] = part
        start += len(part)
    return torch.empty(0) if tokens is None else tokens


@torch.no_grad()
def apply_block(block: BlockPass, tokens: Tensor, runtime: Runtime, into: Tensor | None = None) -> None:
    """Put what ``block`` makes of ``tokens`` [images, N, C] ``into`` others, or in their own place; in batches."""
    places = torch.split(tokens if into is None else into, FORWARD_BATCH)
    for part, place in zip(torch.split(tokens, FORWARD_BATCH), places, strict=True):
        with runtime.autocast():
            output = block(part.to(runtime.device))
        place.copy_(output)
