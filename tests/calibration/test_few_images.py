"""Too few images, or too little memory, for a calibration: said at once, with numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stopping import BLOCKS, make_checkpoint, run
from torch import nn

import vitcod_cli
from vitcod_cli import distributed, machine
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.calibration import checks
from vitcod_cli.calibration.block_fit import BlockFit, Goal
from vitcod_cli.calibration.checks import check_count, check_shares, checked_teacher, least_images
from vitcod_cli.calibration.objective import OutputLoss
from vitcod_cli.calibration.settings import CalibrationSettings
from vitcod_cli.data import calibration as data_calibration
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.errors import VitcodError
from vitcod_cli.model.build import build_model
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import Runtime, RuntimeSettings
from vitcod_cli.signals import StopRequest
from vitcod_cli.steps.evaluation import evaluate
from vitcod_cli.steps.options import EvalOptions

CPU = torch.device("cpu")
PREPROCESS = Preprocess((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.875)


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return make_checkpoint(tmp_path / "dense.safetensors", masked=False)


@pytest.fixture
def masked(tmp_path: Path) -> str:
    return make_checkpoint(tmp_path / "masked.safetensors", masked=True)


def shares(monkeypatch: pytest.MonkeyPatch, *counts: int) -> None:
    """As if the processes had so many images each."""
    monkeypatch.setattr(distributed, "world_size", lambda: len(counts))
    monkeypatch.setattr(distributed, "gather_objects", lambda _: list(counts))


def no_images(count: int, crops: int = 1) -> CalibrationImages:
    return CalibrationImages(
        torch.zeros(count * crops, 3, 32, 32, dtype=torch.uint8), PREPROCESS, CPU, count, crops
    )


@pytest.mark.parametrize("step", ["lowrank", "sparse"])
def test_one_image_is_too_few_and_two_are_enough(
    dense: str, masked: str, image_folder: Path, tmp_path: Path, step: Any
) -> None:
    checkpoint, folder = dense if step == "lowrank" else masked, tmp_path / "run"
    with pytest.raises(VitcodError) as error:
        run(step, checkpoint, image_folder, folder, calibrate_images=1)
    assert str(error.value) == (
        "--calibrate-images 1 is too few: one is fitted to and one more is held out to judge by, which makes 2; "
        "give at least 2, or leave calibration out with --calibrate-steps 0."
    )
    assert not folder.exists()
    run(step, checkpoint, image_folder, folder, calibrate_images=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("stage") == "calibrate" for line in lines) == BLOCKS


def test_heads_alone_are_fitted_to_one_image(dense: str, image_folder: Path, tmp_path: Path) -> None:
    run("lowrank", dense, image_folder, tmp_path / "run", calibrate_images=1, calibrate_steps=0)


@pytest.mark.parametrize(("processes", "least"), [(1, 2), (2, 3), (8, 9)])
def test_the_least_number_by_processes(monkeypatch: pytest.MonkeyPatch, processes: int, least: int) -> None:
    shares(monkeypatch, *[1] * processes)
    assert least_images(CalibrationSettings()) == least
    check_count(least, CalibrationSettings(calibrate_images=least))
    with pytest.raises(VitcodError, match=f"--calibrate-images {least - 1} is too few.*give at least {least}"):
        check_count(1000, CalibrationSettings(calibrate_images=least - 1))
    with pytest.raises(VitcodError, match=f"{least - 1} training images are too few.*makes {least};"):
        check_count(least - 1, CalibrationSettings())
    check_count(1, CalibrationSettings(calibrate_images=1, calibrate_steps=0))


@pytest.mark.parametrize(
    ("counts", "enough"),
    [((2,), True), ((1,), False), ((2, 1), True), ((1, 1), False), ((5, 0), False), ((1, 9), True)],
)
def test_what_could_be_read_is_counted_anew(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], enough: bool
) -> None:
    shares(monkeypatch, *counts)
    if enough:
        check_shares(no_images(counts[0], crops=3), CalibrationSettings())
    else:
        with pytest.raises(VitcodError, match=f"Only {sum(counts)} calibration images could be read"):
            check_shares(no_images(counts[0], crops=3), CalibrationSettings())


def test_bad_images_can_make_them_too_few(masked: str, tmp_path: Path, image_folder: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "val"):
        for index in range(4):
            path = data / split / "a" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 50).convert("RGB").save(path)
            if split == "train" and index:
                path.write_bytes(b"no image")
    with pytest.raises(VitcodError, match="Only 1 calibration images could be read"):
        run("sparse", masked, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_image_counts_alike_though_shares_differ(
    tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over processes of their weighted means is the mean over all images."""
    tokens = torch.zeros(3, 17, 24)
    weights = []
    for mine in (2, 6):
        shares(monkeypatch, 2, 6)
        fit = BlockFit(
            index=0,
            parameters=[],
            peak=1e-3,
            views=len(tokens),
            steps=240,
            tokens=tokens,
            teacher_tokens=tokens,
            goal=Goal(nn.Identity(), tokens, OutputLoss(torch.ones(17))),
            ahead=(),
            crops=1,
            settings=CalibrationSettings(),
            runtime=Runtime(RuntimeSettings(), CPU, torch.float32),
            stop=StopRequest(),
        )
        fit.fitted = torch.arange(mine)
        weights.append(fit._share()[1])
    assert [weight / 2 for weight in weights] == [2 / 8, 6 / 8]


def test_a_batch_larger_than_the_images_is_all_of_them(masked: str, image_folder: Path, tmp_path: Path) -> None:
    run("sparse", masked, image_folder, tmp_path / "run", calibrate_batch_size=10**6, calibrate_steps=1)


@pytest.mark.parametrize(
    ("changes", "images"),
    [({"calibrate_crops": 1000}, 12), ({"calibrate_images": 10**7, "calibrate_crops": 5}, 20)],
)
def test_too_much_for_the_memory_is_refused_with_numbers(
    masked: str,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    images: int,
) -> None:
    crops = changes["calibrate_crops"]
    monkeypatch.setattr(checks, "available_memory", lambda: 300_000)
    with pytest.raises(VitcodError) as error:
        run("sparse", masked, image_folder, tmp_path / "run", **changes)
    assert str(error.value).startswith(f"Calibration on {images} images in {crops} crops needs about ")
    assert "GB of main memory, and 0.0 GB are left; lower --calibrate-images (to " in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_estimate_is_what_images_and_tokens_take(
    monkeypatch: pytest.MonkeyPatch, masked: str, tmp_path: Path
) -> None:
    """Where the disk has no room for tokens."""
    monkeypatch.setattr(checks, "free_space", lambda folder: 0)
    model = vitcod_cli.load(masked, inference=False)
    settings = CalibrationSettings(calibrate_images=100, calibrate_crops=2, calibrate_batch_size=1)
    pixels, tokens = 200 * 3 * 32 * 32, 4 * 200 * 17 * 24 * 4
    for left, fits in ((pixels + tokens, False), (int(1.3 * (pixels + tokens)), True), (None, True)):
        monkeypatch.setattr(checks, "available_memory", lambda left=left: left)
        if fits:
            checks.check_memory(model, PREPROCESS, 1000, settings, device=CPU, folder=tmp_path)
        else:
            with pytest.raises(VitcodError, match="on 100 images in 2 crops"):
                checks.check_memory(model, PREPROCESS, 1000, settings, device=CPU, folder=tmp_path)


def test_images_of_a_map_must_fit_too(
    cli: Any, dense: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_calibration, "available_memory", lambda: 10_000)
    words = ("--checkpoint", dense, "--data-path", image_folder, "--workers", 0)
    error = cli("dump-attn", *words, "--importance-images", 20).error
    assert error == (
        "--importance-images: 20 images need 0.0 GB of main memory, and there are 0.0 GB left; take fewer."
    )


# -- values that are not finite ---------------------------------------------------------------------


def test_weights_that_overflow_are_one_sentence(
    dense: str, masked: str, image_folder: Path, tmp_path: Path
) -> None:
    for step, checkpoint in (("lowrank", dense), ("sparse", masked)):
        model = vitcod_cli.load(checkpoint, inference=False)
        with torch.no_grad():
            model.blocks[1].mlp.fc1.weight.fill_(1e30)
            model.blocks[1].mlp.fc2.weight.fill_(1e30)
        broken = str(tmp_path / f"broken-{step}.safetensors")
        vitcod_cli.save(model, broken)
        with pytest.raises(VitcodError) as error:
            run(step, broken, image_folder, tmp_path / step)  # type: ignore[arg-type]
        expected = "The tokens that enter block 3" if step == "lowrank" else "The output of block 2 is not finite"
        assert str(error.value).startswith(expected)


def test_half_precision_gets_as_far_as_single(masked: str, image_folder: Path, tmp_path: Path) -> None:
    gains = {}
    for precision in ("float32", "float16", "bfloat16"):
        folder = tmp_path / precision
        options = {"runtime": {"precision": precision}, "calibrate_steps": 30, "calibrate_crops": 1}
        run("sparse", masked, image_folder, folder, **options)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        errors = [line["error"] / line["error_before"] for line in lines if line.get("stage") == "calibrate"]
        gains[precision] = sum(errors) / len(errors)
    assert gains["float32"] < 0.97
    assert gains["float16"] == pytest.approx(gains["float32"], abs=0.03)
    assert gains["bfloat16"] == pytest.approx(gains["float32"], abs=0.03)


@pytest.mark.parametrize("step", ["lowrank", "sparse"])
def test_by_itself_calibration_is_in_half_precision_and_all_else_in_single(
    step: Any, dense: str, masked: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that is fast at bfloat16: heads are fitted and scores are taken in float32, as eval takes them."""
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset(["avx512_bf16"]))
    heads, errors, scores = {}, {}, {}
    for precision in ("auto", "float32", "bfloat16"):
        folder = tmp_path / precision
        run(step, dense if step == "lowrank" else masked, image_folder, folder, runtime={"precision": precision})
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        heads[precision] = [line for line in lines if line.get("stage") not in (None, "calibrate")]
        errors[precision] = [line["error"] for line in lines if line.get("stage") == "calibrate"]
        scores[precision] = lines[-1]["loss"]
    options = EvalOptions(
        checkpoint=[str(tmp_path / "auto" / "last.safetensors")],
        data=DataSettings(data_path=str(image_folder), workers=0),
        runtime=RuntimeSettings(device="cpu", threads=1),
    )
    assert evaluate(options).loss == pytest.approx(scores["auto"], rel=1e-6)
    assert errors["auto"] != errors["float32"]
    if step == "lowrank":
        assert heads["auto"]
        assert heads["auto"] == heads["float32"] != heads["bfloat16"]
    else:
        assert errors["auto"] == errors["bfloat16"]
        assert scores["auto"] != pytest.approx(scores["bfloat16"], rel=1e-6)


# -- teachers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "size", "says"),
    [
        ({"patch_size": 16}, (64, 64), "images of 64 x 64"),
        ({"in_chans": 1}, (32, 32), "in 1 channels"),
        ({"class_token": False, "global_pool": "avg", "reg_tokens": 1}, (32, 32), None),
    ],
)
def test_a_teacher_of_other_images_is_one_sentence(
    tiny_config: ModelConfig, kwargs: dict[str, Any], size: tuple[int, int], says: str | None
) -> None:
    student = build_model(tiny_config)
    changes = {"model_kwargs": {**tiny_config.model_kwargs, **kwargs}, "img_size": size}
    teacher = build_model(tiny_config.changed(model="vit_tiny_patch16_224", **changes))
    if says is None:
        assert checked_teacher(student, teacher, "--distill-from") is teacher
    else:
        with pytest.raises(VitcodError, match=f"--distill-from takes .*{says}"):
            checked_teacher(student, teacher, "--distill-from")


# -- from Python ---------------------------------------------------------------------------------------


def test_compress_says_what_is_amiss_at_once(dense: str, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    with pytest.raises(VitcodError, match="num_images must be at least 1"):
        vitcod_cli.compress(dense, [images], num_images=0)
    with pytest.raises(VitcodError, match=r"Only 1 calibration images could be read.*more num_images"):
        vitcod_cli.compress(dense, [images], num_images=1)
    with pytest.raises(VitcodError, match="batches of images alone, not lists"):
        vitcod_cli.compress(dense, [[images, torch.zeros(4)]])  # type: ignore[list-item]
    with pytest.raises(VitcodError, match="sparsity"):
        vitcod_cli.compress(dense, iter(()), sparsity=1.5)
    with pytest.raises(VitcodError, match=r"--sparsity 0.9 can't be reached"):
        vitcod_cli.compress(dense, [images])
    with pytest.raises(VitcodError, match="not finite"):
        vitcod_cli.compress(dense, [images * torch.nan], sparsity=0.5)


def test_compress_leaves_ctrl_c_to_python(dense: str) -> None:
    class Impatient(SilentReporter):
        def progress(self, description: str, total: float | None, unit: str = "images") -> Any:
            if description == "calibrate":
                raise KeyboardInterrupt
            return super().progress(description, total, unit)

    with pytest.raises(KeyboardInterrupt):
        vitcod_cli.compress(dense, [torch.randn(4, 3, 32, 32)], sparsity=0.5, reporter=Impatient())
