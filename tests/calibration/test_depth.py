"""What changes with a block's place: how far its fit looks ahead, and what late blocks do otherwise."""

from __future__ import annotations

import pytest
import torch
from pairs import CPU, RUNTIME, calibration_images, teacher_and_student

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.calibration.blockwise import calibrate, walk_blocks
from vitcod_cli.calibration.depth import Depth
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.calibration.token_store import TokenStore
from vitcod_cli.model.passes import block_passes, tokens_of
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.signals import StopRequest


def deep(config: ModelConfig, depth: int = 5, **changes: int) -> ModelConfig:
    return config.changed(model_kwargs={**config.model_kwargs, "depth": depth}, **changes)


@pytest.mark.parametrize(("blocks", "early"), [(12, 6), (5, 3), (1, 1)])
def test_late_blocks_take_smaller_steps_and_look_at_the_class_token(blocks: int, early: int) -> None:
    depth = Depth(late_rate=0.5, late_class_share=0.75)
    assert [depth.learning_rate(1.0, index, blocks, 1) for index in range(blocks)] == (
        [1.0] * early + [0.5] * (blocks - early)
    )
    assert [depth.class_share(index, blocks, 1) for index in range(blocks)] == (
        [0.0] * early + [0.75] * (blocks - early)
    )
    assert {depth.learning_rate(1.0, index, blocks, 0) for index in range(blocks)} == {1.0}, "pooled patch tokens"
    assert not any(depth.class_share(index, blocks, 0) for index in range(blocks))


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
@torch.no_grad()
def test_each_block_is_given_the_tokens_of_both_models_around_it(tiny_config: ModelConfig, ahead: int) -> None:
    teacher, student = teacher_and_student(deep(tiny_config))
    images = calibration_images(40)  # more than one batch
    behind = {
        name: [tokens_of(model, images.tensor(slice(None)))] for name, model in (("t", teacher), ("s", student))
    }
    for name, model in (("t", teacher), ("s", student)):
        for block in block_passes(model):
            behind[name].append(block(behind[name][-1]))
    seen = 0
    walk = walk_blocks(student, teacher, images, RUNTIME, ahead=ahead, stop=StopRequest(), store=TokenStore(CPU))
    for index, tokens in enumerate(walk):
        assert len(tokens.ahead) == min(ahead, 4 - index)
        wanted = [behind["s"][index], *behind["t"][index : index + 2 + len(tokens.ahead)]]
        for given, want in zip(
            [tokens.student, tokens.entering, tokens.leaving, *tokens.ahead], wanted, strict=True
        ):
            torch.testing.assert_close(given, want, rtol=1e-5, atol=1e-5)
        seen += 1
    assert seen == 5


@pytest.mark.parametrize(("changes", "still"), [({}, [2, 3]), ({"num_classes": 0}, [])])
def test_late_blocks_have_their_own_learning_rate_where_a_class_token_is_read(
    tiny_config: ModelConfig, changes: dict[str, int], still: list[int]
) -> None:
    teacher, student = teacher_and_student(deep(tiny_config, 4, **changes))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    settings = CalibrationSettings(calibrate_steps=20, calibrate_batch_size=8)
    calibrate(
        student, teacher, calibration_images(), settings,
        scope="block", runtime=RUNTIME, reporter=SilentReporter(), depth=Depth(late_rate=0.0),
    )  # fmt: skip
    changed = {
        int(name.split(".")[1])
        for name, value in student.state_dict().items()
        if name.startswith("blocks.") and not torch.equal(value, before[name])
    }
    assert {0, 1} <= changed
    assert [index for index in (2, 3) if index not in changed] == still


def test_late_blocks_give_the_class_token_its_share(tiny_config: ModelConfig) -> None:
    """With all of it, patch tokens that nobody reads any more may go anywhere."""
    errors = []
    for share in (0.0, 1.0):
        teacher, student = teacher_and_student(deep(tiny_config, 2))
        settings = CalibrationSettings(calibrate_steps=60, calibrate_batch_size=8, calibrate_lr=1e-2)
        images = calibration_images()
        depth = Depth(ahead=0, late_from=0.0, late_rate=1.0, late_class_share=share)
        calibrate(
            student, teacher, images, settings,
            scope="block", runtime=RUNTIME, reporter=SilentReporter(), depth=depth,
        )  # fmt: skip
        with torch.no_grad():
            tokens = tokens_of(teacher, images.tensor(slice(None)))
            error = (student.blocks[0](tokens) - teacher.blocks[0](tokens)).square().mean(dim=(0, 2))
        errors.append((float(error[0]), float(error[1:].mean())))
    assert errors[1][0] < 0.9 * errors[0][0]
    assert errors[1][1] > 1.1 * errors[0][1]
