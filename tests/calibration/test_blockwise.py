"""Block-wise calibration: the student gets nearer to its teacher, and never further away."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from pairs import CPU, RUNTIME, calibration_images, teacher_and_student
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.calibration import block_fit
from vitcod_cli.calibration.blockwise import calibrate
from vitcod_cli.calibration.checks import checked_teacher
from vitcod_cli.calibration.fit import FitReport, fitted_parameters, learning_rate_factor
from vitcod_cli.calibration.objective import PREFIX_SHARE, OutputLoss
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attentions, keep_mask
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.signals import StopRequest


def run(teacher: VisionTransformer, student: VisionTransformer, **settings: float) -> list[FitReport]:
    chosen = CalibrationSettings(**{"calibrate_steps": 30, "calibrate_batch_size": 8, **settings})  # type: ignore[arg-type]
    return calibrate(
        student, teacher, calibration_images(), chosen, scope="block", runtime=RUNTIME, reporter=SilentReporter()
    )


@torch.no_grad()
def distance(one: VisionTransformer, other: VisionTransformer) -> float:
    images = calibration_images().tensor(slice(None))
    want = one.forward_features(images)
    return float((other.forward_features(images) - want).norm() / want.norm())


@torch.no_grad()
def read_distance(one: VisionTransformer, other: VisionTransformer) -> float:
    """Of the class token behind the last norm."""
    images = calibration_images().tensor(slice(None))
    want = one.forward_features(images)[:, 0]
    return float((other.forward_features(images)[:, 0] - want).norm() / want.norm())


@pytest.mark.parametrize("classes", [0, 5])
def test_the_student_comes_nearer_to_the_teacher_and_keeps_its_mask(
    tiny_config: ModelConfig, classes: int
) -> None:
    """At all tokens where any may be read, and at what a head reads where there is one."""
    teacher, student = teacher_and_student(tiny_config.changed(num_classes=classes))
    far = distance if classes == 0 else read_distance
    before, mask = far(teacher, student), keep_mask(student)
    reports = run(teacher, student, calibrate_lr=1e-2, calibrate_steps=60)
    assert [report.block for report in reports] == [0, 1]
    assert all(
        report.after < (0.8 if report.block == 0 or not classes else 1) * report.before for report in reports
    )
    assert far(teacher, student) < 0.8 * before
    assert torch.equal(keep_mask(student), mask)


def test_the_same_seed_gives_the_same_weights(tiny_config: ModelConfig) -> None:
    weights = []
    for _ in range(2):
        teacher, student = teacher_and_student(tiny_config)
        run(teacher, student, calibrate_steps=5)
        weights.append(student.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_student_that_is_right_already_stays_as_it_is(tiny_config: ModelConfig) -> None:
    teacher, _ = teacher_and_student(tiny_config)
    student, reporter = copy.deepcopy(teacher), SilentReporter()
    settings = CalibrationSettings(calibrate_steps=5, calibrate_batch_size=8)
    reports = calibrate(
        student, teacher, calibration_images(), settings, scope="block", runtime=RUNTIME, reporter=reporter
    )
    assert all(report.after == report.before for report in reports)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), student.parameters(), strict=True))
    assert reporter.warnings == [], "there was nothing to gain"


@pytest.mark.parametrize(
    ("rate", "how"), [(3.0, "diverged to an error of"), (1e9, "diverged at calibration step")]
)
def test_a_block_that_diverges_keeps_its_best_state_and_is_named(
    tiny_config: ModelConfig, rate: float, how: str
) -> None:
    teacher, student = teacher_and_student(tiny_config)
    before = copy.deepcopy(student.state_dict())
    reporter = SilentReporter()
    settings = CalibrationSettings(calibrate_steps=40, calibrate_batch_size=8, calibrate_lr=rate)
    reports = calibrate(
        student, teacher, calibration_images(), settings, scope="block", runtime=RUNTIME, reporter=reporter
    )
    assert all(report.after == report.before for report in reports)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert len(reporter.warnings) == 3
    assert reporter.warnings[0].startswith(f"Block 1: {how}")
    assert reporter.warnings[-1].startswith("Calibration made no block better on held-out images")


class Listener(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told = ""

    def info(self, text: str) -> None:
        self.told += text


def test_blocks_that_were_put_back_are_counted(tiny_config: ModelConfig) -> None:
    teacher, student = teacher_and_student(tiny_config)
    reporter = Listener()
    calibrate(
        student,
        teacher,
        calibration_images(),
        CalibrationSettings(calibrate_steps=4, calibrate_lr=1e9),
        scope="block",
        runtime=RUNTIME,
        reporter=reporter,
        finished=[FitReport(0, before=2.0, after=1.0, improved=True, seconds=0.1)],
    )
    assert "made 1 of 2 blocks better on held-out images; the others are as they were" in reporter.told


@pytest.mark.parametrize("error", [1.0, 0.0])
def test_it_ends_behind_blocks_that_were_fitted_in_vain(tiny_config: ModelConfig, error: float) -> None:
    """But not behind those that had nothing to gain."""
    teacher, student = teacher_and_student(
        tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "depth": 6})
    )
    reporter, blocks = Listener(), copy.deepcopy(student.blocks[4:].state_dict())
    finished = [
        FitReport(index, before=before, after=after, improved=after < before, seconds=0.1)
        for index, (before, after) in enumerate([(2.0, 1.0), (error, error), (error, error), (error, error)])
    ]
    reports = calibrate(
        student,
        teacher,
        calibration_images(),
        CalibrationSettings(calibrate_steps=30, calibrate_lr=1e-2, calibrate_batch_size=8),
        scope="block",
        runtime=RUNTIME,
        reporter=reporter,
        finished=finished,
    )
    ended = error > 0
    assert len(reports) == (4 if ended else 6)
    assert (
        all(
            torch.equal(a, b)
            for a, b in zip(blocks.values(), student.blocks[4:].state_dict().values(), strict=True)
        )
        == ended
    )
    told = (
        "made 1 of 6 blocks better on held-out images; it ended behind block 4, as the last 3 had become no better"
    )
    assert (told in reporter.told) == ended


def test_a_teacher_of_another_normalisation_sees_images_normalised_its_way(tiny_config: ModelConfig) -> None:
    student = build_model(tiny_config)
    teacher = build_model(tiny_config.changed(model="vit_tiny_patch16_224"))
    assert teacher.pretrained_cfg["mean"] == teacher.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    seen: dict[str, torch.Tensor] = {}
    for name, model in (("student", student), ("teacher", teacher)):

        def look(_: nn.Module, arguments: tuple[torch.Tensor], name: str = name) -> None:
            seen.setdefault(name, arguments[0])

        model.patch_embed.register_forward_pre_hook(look)
    run(teacher, student, calibrate_steps=1)
    mean, std = (torch.tensor(student.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(seen["teacher"], (seen["student"] * std + mean - 0.5) / 0.5)


def test_nothing_keeps_the_teacher(tiny_config: ModelConfig) -> None:
    teacher, student = teacher_and_student(tiny_config)
    reports = run(teacher, student, calibrate_steps=1)
    alive = weakref.ref(teacher)
    del teacher
    gc.collect()
    assert alive() is None
    assert len(reports) == 2


def test_attention_scope_leaves_the_rest_of_the_block_alone(tiny_config: ModelConfig) -> None:
    student = build_model(tiny_config)
    for layer in attentions(student):
        layer.add_auto_encoder("mix_head_fc_qk")
    fitted = {id(parameter) for parameter in fitted_parameters(student.blocks[0], "attention")}
    names = {name for name, parameter in student.blocks[0].named_parameters() if id(parameter) in fitted}
    pairs = [f"{kind}_{letter}" for kind in ("encoder", "decoder") for letter in "qk"]
    assert names == {f"attn.{module}.{part}" for module in ("qkv", *pairs) for part in ("weight", "bias")}


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_no_gradient_is_left_for_the_first_training_step(tiny_config: ModelConfig, scope: Any) -> None:
    teacher, student = teacher_and_student(tiny_config)
    settings = CalibrationSettings(calibrate_steps=2, calibrate_batch_size=8)
    calibrate(
        student, teacher, calibration_images(), settings, scope=scope, runtime=RUNTIME, reporter=SilentReporter()
    )
    assert [name for name, parameter in student.named_parameters() if parameter.grad is not None] == []


def test_prefix_tokens_have_their_share_of_the_loss() -> None:
    target = torch.randn(64, 10, 6)
    loss = OutputLoss.scaled_to(target, 1, CPU)
    wrong_prefix, wrong_rest = target.clone(), target.clone()
    wrong_prefix[:, 0] = target[:, 0].mean(dim=0)
    wrong_rest[:, 1:] = target[:, 1:].mean(dim=0)
    assert float(loss(wrong_prefix, target)) == pytest.approx(PREFIX_SHARE, rel=0.1)
    assert float(loss(wrong_rest, target)) == pytest.approx(1 - PREFIX_SHARE, rel=0.1)


@pytest.mark.parametrize(("prefix", "class_tokens"), [(1, 1), (5, 1), (2, 2)])
def test_what_the_head_reads_has_a_share_beforehand(prefix: int, class_tokens: int) -> None:
    """The rest is shared as usual, registers with the class token."""
    target = torch.randn(64, 10, 6)
    loss = OutputLoss.scaled_to(target, prefix, CPU, class_tokens=class_tokens, class_share=0.6)
    wrong = {}
    for name, tokens in {"class": slice(0, class_tokens), "patches": slice(prefix, None)}.items():
        output = target.clone()
        output[:, tokens] = target[:, tokens].mean(dim=0)
        wrong[name] = float(loss(output, target))
    assert wrong["class"] == pytest.approx(0.6 + 0.4 * PREFIX_SHARE * class_tokens / prefix, rel=0.1)
    assert wrong["patches"] == pytest.approx(0.4 * (1 - PREFIX_SHARE), rel=0.1)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_constant_targets_give_a_finite_loss(prefix: int) -> None:
    target = torch.ones(4, 5, 3)
    assert OutputLoss.scaled_to(target, prefix, CPU)(target, target) == 0
    assert OutputLoss.scaled_to(target, prefix, CPU)(target + 1, target).isfinite()


def test_a_teacher_of_another_shape_is_one_sentence(tiny_config: ModelConfig) -> None:
    student = build_model(tiny_config)
    other = build_model(tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "depth": 3}))
    with pytest.raises(
        VitcodError, match=r"--distill-from has 3 blocks, 17 tokens and width 24.*has 2, 17 and 24"
    ):
        checked_teacher(student, other, "--distill-from")
    with pytest.raises(VitcodError, match="must be a Vision Transformer"):
        checked_teacher(student, nn.Linear(2, 2), "--teacher")


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(factors[9], rel=0.03)
    assert factors[-1] < 0.001
    assert learning_rate_factor(0, 1) == 1.0


def a_fit(config: ModelConfig, tokens: Tensor, teacher_tokens: Tensor, crops: int = 1) -> block_fit.BlockFit:
    block = build_model(config).blocks[0]
    return block_fit.BlockFit(
        index=0,
        parameters=list(block.parameters()),
        peak=1e-3,
        views=len(tokens),
        steps=240,
        tokens=tokens,
        teacher_tokens=teacher_tokens,
        goal=block_fit.Goal(block, teacher_tokens, OutputLoss.scaled_to(torch.randn(48, 17, 24), 1, CPU)),
        ahead=(),
        crops=crops,
        settings=CalibrationSettings(),
        runtime=RUNTIME,
        stop=StopRequest(),
    )


def test_whole_tokens_are_taken_from_the_teacher(tiny_config: ModelConfig) -> None:
    fit = a_fit(tiny_config, torch.zeros(16, 17, 24), torch.arange(1.0, 17).view(16, 1, 1).expand(16, 17, 24))
    sample, generator = torch.tensor([3, 3, 7, 15]), torch.Generator().manual_seed(0)
    own = torch.tensor([4.0, 4, 8, 16]).view(4, 1, 1).expand(4, 17, 24)
    assert torch.equal(fit._mixed(sample, 0.0, generator), torch.zeros(4, 17, 24))
    assert torch.equal(fit._mixed(sample, 1.0, generator), own)
    taken = fit._mixed(sample, 0.5, generator) / own
    assert set(taken.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(taken, taken[..., :1].expand_as(taken))
    assert 0.3 < taken.mean() < 0.7
    assert not torch.equal(taken[0], taken[1]), "the same image in one step"


def test_what_the_next_block_makes_of_the_output_counts(tiny_config: ModelConfig) -> None:
    """A fit that looks ahead has less error behind the teacher's next block, whose weights it leaves alone."""
    errors = []
    for looks in (False, True):
        teacher, student = teacher_and_student(tiny_config)
        following = teacher.blocks[1]
        with torch.no_grad():
            tokens = teacher._pos_embed(teacher.patch_embed(calibration_images().tensor(slice(None))))
            target = teacher.blocks[0](tokens)
            behind = following(target)
        goal = block_fit.Goal(following, behind, OutputLoss.scaled_to(behind, 1, CPU))
        block = student.blocks[0]
        fit = block_fit.BlockFit(
            index=0,
            parameters=list(block.parameters()),
            peak=1e-2,
            views=len(tokens),
            steps=40,
            tokens=tokens,
            teacher_tokens=tokens,
            goal=block_fit.Goal(block, target, OutputLoss.scaled_to(target, 1, CPU)),
            ahead=[goal] if looks else (),
            crops=1,
            settings=CalibrationSettings(calibrate_batch_size=8),
            runtime=RUNTIME,
            stop=StopRequest(),
        )
        fit.run(lambda error: None)
        with torch.no_grad():
            errors.append(float(goal.error(block(tokens), torch.arange(len(tokens)))[1]))
        assert all(parameter.grad is None for parameter in following.parameters())
    assert errors[1] < 0.95 * errors[0]


def test_a_fit_is_judged_by_what_it_is_fitted_for(tiny_config: ModelConfig) -> None:
    """A block that was right by itself, and wrong for the next one, may become a little wrong."""
    teacher, student = teacher_and_student(tiny_config)
    block, following = student.blocks[0], teacher.blocks[1]
    with torch.no_grad():
        tokens = torch.randn(48, 17, 24)
        target, wanted = block(tokens), following(teacher.blocks[0](tokens))
    fit = a_fit(tiny_config, tokens, tokens)
    fit.parameters, fit.steps, fit.peak = list(block.parameters()), 60, 1e-2
    fit.goal = block_fit.Goal(block, target, OutputLoss.scaled_to(target, 1, CPU))
    fit.ahead = [block_fit.Goal(following, wanted, OutputLoss.scaled_to(wanted, 1, CPU))]
    first, _ = fit.held_out_errors()
    report = fit.run(lambda error: None)
    last, _ = fit.held_out_errors()
    assert last < 0.95 * first
    assert report.before == 0 < report.after
    assert report.improved


def test_the_share_of_the_teachers_tokens_falls(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    mixed = block_fit.BlockFit._mixed

    def watch(fit: Any, sample: Tensor, share: float, generator: torch.Generator) -> Tensor:
        shares.append(share)
        return mixed(fit, sample, share, generator)

    monkeypatch.setattr(block_fit.BlockFit, "_mixed", watch)
    fit = a_fit(tiny_config, torch.randn(16, 17, 24), torch.randn(16, 17, 24))
    fit.steps = 4
    fit.run(lambda error: None)
    assert shares == [block_fit.TEACHER_SHARE * left for left in (1, 0.75, 0.5, 0.25)]


class Shifted(nn.Module):
    """A block whose output is another one at the patches."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return torch.cat([x[:, :1], 2 - x[:, 1:]], dim=1)


@pytest.mark.parametrize("joint", [0, 5])
@pytest.mark.parametrize(("scope", "unread"), [("block", True), ("attention", False)])
def test_of_the_last_block_what_the_head_reads_is_fitted(
    tiny_config: ModelConfig, scope: Any, unread: bool, joint: int
) -> None:
    """Whatever the teacher makes of other rows changes nothing; the low-rank step, for maps, goes by all rows."""
    weights = []
    for other_rows in (False, True):
        teacher, student = teacher_and_student(tiny_config)
        if other_rows:
            teacher.blocks[-1] = Shifted(teacher.blocks[-1])
        settings = CalibrationSettings(calibrate_steps=5, calibrate_joint_steps=joint, calibrate_batch_size=8)
        images, reporter = calibration_images(), SilentReporter()
        reports = calibrate(student, teacher, images, settings, scope=scope, runtime=RUNTIME, reporter=reporter)
        assert reports[-1].improved
        weights.append(student.blocks[-1].attn.qkv.weight.detach())
    assert torch.allclose(*weights, rtol=0, atol=1e-4) == unread


def test_an_image_is_held_out_with_all_its_crops(tiny_config: ModelConfig) -> None:
    tokens = torch.zeros(3 * 16, 17, 24)
    fit = a_fit(tiny_config, tokens, tokens, crops=3)
    assert fit.held.tolist() == [1, 9]
    assert {index % 16 for index in fit.fitted.tolist()}.isdisjoint({1, 9})
    assert len(fit.fitted) == 3 * 14
