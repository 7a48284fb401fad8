"""The first blocks fitted as one behind their own fits: nearer to the teacher, never further, resumed exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import RUNTIME, calibration_images, teacher_and_student
from safetensors.torch import load_file
from stopping import BLOCKS, STEPS, Never, Step, Stopper, figures, make_checkpoint, run
from timm.models.vision_transformer import VisionTransformer

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.calibration.blockwise import calibrate
from vitcod_cli.calibration.checks import step_bytes
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.fit import FitReport, Scope
from vitcod_cli.calibration.joint_fit import LEAST_AREA, random_views
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.errors import Interrupted, VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import keep_mask
from vitcod_cli.pipeline.options import way_to
from vitcod_cli.reporting import SilentReporter

JOINT = 6
FILE = "calibration.safetensors"


def fit(
    teacher: VisionTransformer,
    student: VisionTransformer,
    reporter: SilentReporter | None = None,
    *,
    scope: Scope = "block",
    **settings: Any,
) -> list[FitReport]:
    chosen = {"calibrate_steps": 5, "calibrate_joint_steps": 60, "calibrate_batch_size": 8, "calibrate_lr": 1e-2}
    return calibrate(
        student,
        teacher,
        calibration_images(),
        CalibrationSettings(**{**chosen, **settings}),  # type: ignore[arg-type]
        scope=scope,
        runtime=RUNTIME,
        reporter=reporter or SilentReporter(),
    )


@torch.no_grad()
def class_distance(one: VisionTransformer, other: VisionTransformer) -> float:
    """Of the class token behind the last norm, on images as nothing was fitted to them."""
    images = random_views(calibration_images().tensor(slice(None)), torch.Generator().manual_seed(7))
    want = one.forward_features(images)[:, 0]
    return float((other.forward_features(images)[:, 0] - want).norm() / want.norm())


def test_blocks_as_one_come_nearer_than_one_by_one(tiny_config: ModelConfig) -> None:
    distances = []
    for steps in (0, 60):
        teacher, student = teacher_and_student(tiny_config)
        mask, right = keep_mask(student), copy.deepcopy(teacher.state_dict())
        reports = fit(teacher, student, calibrate_joint_steps=steps)
        distances.append(class_distance(teacher, student))
        assert torch.equal(keep_mask(student), mask)
        assert all(torch.equal(value, right[name]) for name, value in teacher.state_dict().items())
        assert all(p.grad is None for model in (teacher, student) for p in model.parameters())
    assert [report.block for report in reports] == [0, None, 1]
    assert reports[1].after < 0.9 * reports[1].before
    assert distances[1] < 0.9 * distances[0]


def test_the_blocks_own_fits_are_the_same(tiny_config: ModelConfig) -> None:
    """Of those in front of it; and those behind it start from what it made."""
    alone, together = (fit(*teacher_and_student(tiny_config), calibrate_joint_steps=steps) for steps in (0, 60))
    assert (alone[0].before, alone[0].after) == (together[0].before, together[0].after)
    assert together[2].before < alone[1].before


def test_the_same_seed_gives_the_same_weights(tiny_config: ModelConfig) -> None:
    weights = []
    for _ in range(2):
        teacher, student = teacher_and_student(tiny_config)
        fit(teacher, student, calibrate_joint_steps=5)
        weights.append(student.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_student_that_is_right_already_stays_as_it_is(tiny_config: ModelConfig) -> None:
    teacher, _ = teacher_and_student(tiny_config)
    student, reporter = copy.deepcopy(teacher), Never()
    assert not fit(teacher, student, reporter, calibrate_lr=1e-3)[-1].improved
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), student.parameters(), strict=True))
    assert reporter.warnings == []
    assert "Blocks 1 to 1 as one became no better on held-out images; they stay as they were." in reporter.lines


@pytest.mark.parametrize(
    ("rate", "how"), [(30.0, "diverged to an error of"), (1e9, "diverged at calibration step")]
)
def test_a_fit_that_diverges_leaves_the_blocks_as_they_were(
    tiny_config: ModelConfig, rate: float, how: str
) -> None:
    teacher, student = teacher_and_student(tiny_config)
    before, reporter = copy.deepcopy(student.state_dict()), SilentReporter()
    report = fit(teacher, student, reporter, calibrate_lr=rate)[1]
    assert report.after == report.before
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert any(line.startswith(f"Blocks 1 to 1: {how}") for line in reporter.warnings)


def test_of_the_low_rank_step_only_q_and_k_move(tiny_config: ModelConfig) -> None:
    teacher, student = teacher_and_student(tiny_config)
    before = copy.deepcopy(student.state_dict())
    assert fit(teacher, student, scope="attention")[1].improved
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".attn.qkv." in name for name in moved)


@pytest.mark.parametrize(("blocks", "early"), [(1, 1), (2, 1), (3, 2), (12, 6), (24, 12)])
def test_the_first_half_is_fitted_as_one(blocks: int, early: int) -> None:
    depth = Depth()
    late = [depth.is_late(index, blocks, 1) for index in range(blocks)]
    assert depth.early(blocks) == early
    assert late == [False] * early + [True] * (blocks - early)


def test_views_are_parts_of_their_images_half_of_them_mirrored() -> None:
    ramp = torch.arange(64.0).expand(200, 3, 48, 64)
    views = random_views(ramp, torch.Generator().manual_seed(0))
    assert views.shape == ramp.shape
    left, right = views[..., 0].mean(dim=(1, 2)), views[..., -1].mean(dim=(1, 2))
    mirrored = (left > right).float().mean()
    assert 0.35 < mirrored < 0.65
    # What is seen of each row, as a share of it: from the square root of the least area to all of it.
    seen = (right - left).abs() / 63
    assert LEAST_AREA**0.5 - 0.03 < seen.min() < LEAST_AREA**0.5 + 0.1
    assert 0.95 < seen.max() <= 1
    starts = torch.minimum(left, right).round().unique()
    assert set(range(20)) <= set(starts.int().tolist()), "they begin anywhere"
    assert torch.equal(views, random_views(ramp, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("joint", "half"), [(0, 0), (7, 4)])
def test_on_the_way_to_a_mask_it_has_half_of_its_steps(joint: int, half: int) -> None:
    """As the blocks' own fits have."""
    [(share, there)] = way_to(0.9, [0.75], CalibrationSettings(calibrate_steps=9, calibrate_joint_steps=joint))
    assert (share, there.calibrate_steps, there.calibrate_joint_steps) == (0.75, 5, half)


def test_its_memory_is_counted(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "depth": 12}))
    own, joint = (step_bytes(model, 64, CalibrationSettings(calibrate_joint_steps=steps)) for steps in (0, 7))
    assert joint == own * 8 / 3, "six blocks and the two ahead, instead of one and the two"


def test_it_goes_on_from_blocks(tiny_config: ModelConfig) -> None:
    with pytest.raises(VitcodError, match="leave it out, or --calibrate-steps 0"):
        CalibrationSettings(calibrate_steps=0, calibrate_joint_steps=5)


@pytest.mark.parametrize("step", ["lowrank", "sparse"])
def test_stopped_in_it_or_killed_behind_it_and_resumed(
    tmp_path: Path, image_folder: Path, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stopped again in the block behind it, which goes on from what it made."""
    checkpoint = make_checkpoint(tmp_path / "model.safetensors", masked=step == "sparse")
    options: Any = {"calibrate_joint_steps": JOINT, "calibrate_steps": STEPS}
    run(step, checkpoint, image_folder, tmp_path / "whole", **options)
    early, cut = Depth().early(BLOCKS), tmp_path / "cut"
    reporter = Stopper(steps=early * STEPS + 2)
    with pytest.raises(Interrupted):
        run(step, checkpoint, image_folder, cut, reporter, **options)
    assert (
        f"Stopped by SIGTERM in the fit of the first {early} of {BLOCKS} blocks as one; " in reporter.warnings[-1]
    )
    log = RunDirectory.log

    def killed(run: RunDirectory, **metrics: Any) -> None:
        if metrics.get("stage") == "calibrate_joint":
            raise KeyboardInterrupt
        log(run, **metrics)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            run(step, checkpoint, image_folder, cut, resume=True, **options)
    # What is finished advances the progress once each.
    again = Stopper(steps=early + 1 + 2)
    with pytest.raises(Interrupted):
        run(step, checkpoint, image_folder, cut, again, resume=True, **options)
    assert any(f"{early} of {BLOCKS} blocks are finished" in line for line in again.lines)
    assert f"in block {early + 1} of {BLOCKS}" in again.warnings[-1]
    run(step, checkpoint, image_folder, cut, resume=True, **options)
    whole, resumed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert figures(tmp_path / "whole") == figures(cut)
    assert sum(line.get("stage") == "calibrate_joint" for line in figures(cut)) == 1
    assert not (cut / FILE).exists()
