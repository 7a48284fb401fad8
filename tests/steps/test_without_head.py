"""The steps on models without a head: features in the place of choices, beside those of the dense model."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli
from PIL import Image
from safetensors import safe_open
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.artifacts.safetensors_file import open_safetensors
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import SilentReporter

QUICK = ("--batch-size", 10, "--no-repeated-aug", "--workers", 0, "--epochs", 0)
CALIBRATE = ("--calibrate-steps", 60, "--calibrate-images", 20, "--calibrate-lr", 1e-2)
METRICS = ("cosine", "cosine_p5", "relative_error")


def save(config: ModelConfig, path: str, *, seed: int = 0, sparse: bool = False) -> str:
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    if sparse:
        keep = torch.rand(attention_shape(model)) < 0.3
        keep[..., 0] = True
        set_keep_mask(model, keep)
    save_model(path, model, {})
    return path


@pytest.fixture
def config(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelConfig:
    monkeypatch.chdir(tmp_path)
    return tiny_config.changed(num_classes=0)


@pytest.fixture
def dense(config: ModelConfig) -> str:
    return save(config, "dense.safetensors")


@pytest.fixture
def masked(config: ModelConfig) -> str:
    """The same weights under a mask."""
    return save(config, "masked.safetensors", sparse=True)


def features_of(path: str, images: Path) -> Tensor:
    """[images, C] of the validation images, by nothing that the steps call."""
    model = load_model(ModelSettings(num_classes=0), path, flag="", reporter=SilentReporter()).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    transform, batch = preprocess_of(model).eval_transform(), []
    for picture in sorted(images.glob("val/**/*.jpg")):
        with Image.open(picture) as image:
            batch.append((transform(image.convert("RGB")) / 255 - mean) / std)
    with torch.no_grad():
        features: Tensor = model(torch.stack(batch)).double()
    return features


def expected(one: str, reference: str, images: Path) -> dict[str, Any]:
    features, ours = features_of(reference, images), features_of(one, images)
    cosine = (features * ours).sum(dim=1) / (features.norm(dim=1) * ours.norm(dim=1))
    error = (ours - features).norm(dim=1) / features.norm(dim=1)
    figures = (cosine.mean(), cosine.quantile(0.05), error.mean())
    return dict(zip(METRICS, map(float, figures), strict=True), images=len(error))


def about(path: str) -> dict[str, Any]:
    with open_safetensors(Path(path), flag="") as file:
        return dict(file.info)


def test_calibration_brings_the_features_nearer(cli: Cli, image_folder: Path, dense: str, masked: str) -> None:
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK, "--json")
    before = cli(*words, "--calibrate-steps", 0, "--output-dir", "before")
    assert before.code == 0, before.err
    after = cli(*words, *CALIBRATE, "--output-dir", "after")
    assert after.code == 0, after.err
    raw, calibrated = json.loads(before.out), json.loads(after.out)
    assert calibrated["relative_error"] < 0.8 * raw["relative_error"]
    assert calibrated["cosine"] > raw["cosine"]
    # Against the model without its mask, in every place that says so.
    known = expected("after/best.safetensors", dense, image_folder)
    logged = [json.loads(line) for line in Path("after/metrics.jsonl").read_text().splitlines()]
    [table] = csv.DictReader(Path("after/metrics.csv").read_text().splitlines())
    for found in (calibrated, calibrated["last"], logged[-1], table, about("after/best.safetensors")):
        for name in METRICS:
            assert float(found[name]) == pytest.approx(known[name], rel=1e-4), name
        assert not {"acc1", "acc5", "loss", "reference"} & found.keys()
    assert calibrated["images"] == known["images"] == 13
    shown = f"* cosine {known['cosine']:.4f} (worst twentieth {known['cosine_p5']:.4f}) error "
    assert f"Without training: {shown}{100 * known['relative_error']:.1f} %\n" in after.err
    assert "The model has no head" in after.err
    assert "Acc@1" not in after.err
    assert "nan" not in after.err.lower()


def test_the_last_line(cli: Cli, image_folder: Path, masked: str) -> None:
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK)
    outcome = cli(*words, "--calibrate-steps", 0, "--output-dir", "run")
    figures = about("run/best.safetensors")
    worst, error = f"(worst twentieth {figures['cosine_p5']:.4f})", 100 * figures["relative_error"]
    assert outcome.out == f"* cosine {figures['cosine']:.4f} {worst} error {error:.1f} %\n"


def test_low_rank_heads(cli: Cli, image_folder: Path, dense: str) -> None:
    words = ("finetune-lowrank", "--init-from", dense, "--data-path", image_folder, *QUICK, "--align-steps", 5)
    outcome = cli(*words, "--calibrate-steps", 5, "--calibrate-images", 10, "--output-dir", "run", "--json")
    assert outcome.code == 0, outcome.err
    found, known = json.loads(outcome.out), expected("run/best.safetensors", dense, image_folder)
    assert {name: found[name] for name in known} == pytest.approx(known, rel=1e-3)
    assert 0 < found["relative_error"] < 1
    with safe_open("run/best.safetensors", "pt") as file:
        assert "blocks.0.attn.encoder_q.weight" in file.keys()  # noqa: SIM118


def test_a_teacher_is_the_reference_and_loses_its_head(
    cli: Cli, image_folder: Path, tiny_config: ModelConfig, masked: str
) -> None:
    teacher = save(tiny_config, "teacher.safetensors", seed=7)
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK, "--calibrate-steps", 0)
    outcome = cli(*words, "--distill-from", teacher, "--output-dir", "run", "--json")
    assert outcome.code == 0, outcome.err
    known = expected("run/best.safetensors", teacher, image_folder)
    assert json.loads(outcome.out)["relative_error"] == pytest.approx(known["relative_error"], rel=1e-4)


def test_a_teacher_of_other_features(cli: Cli, image_folder: Path, config: ModelConfig, masked: str) -> None:
    wide = config.changed(model_kwargs={**config.model_kwargs, "embed_dim": 48})
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK, "--calibrate-steps", 0)
    outcome = cli(*words, "--distill-from", save(wide, "wide.safetensors"), "--output-dir", "run")
    assert outcome.code == 1
    assert "--distill-from wide.safetensors gives 48 features and the model 24" in outcome.error
    assert not Path("run").exists()


def test_two_processes_find_what_one_does(run_cli: Any, image_folder: Path, masked: str) -> None:
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK, "--json")
    one, two = (
        run_cli(*words, "--calibrate-steps", 0, "--output-dir", f"run{count}", "--nproc-per-node", count)
        for count in (1, 2)
    )
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    alone, both = json.loads(one.stdout), json.loads(two.stdout)
    assert {name: both[name] for name in METRICS} == pytest.approx(
        {name: alone[name] for name in METRICS}, rel=1e-6
    )
    assert both["images"] == alone["images"] == 13
    assert two.stderr.count("The model has no head") == 1


def test_two_processes_calibrate(run_cli: Any, image_folder: Path, masked: str) -> None:
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK, "--json")
    raw = run_cli(*words, "--calibrate-steps", 0, "--output-dir", "raw")
    both = run_cli(*words, *CALIBRATE, "--output-dir", "both", "--nproc-per-node", 2)
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["relative_error"] < 0.8 * json.loads(raw.stdout)["relative_error"]


def test_a_finished_run_is_gone_on_with(cli: Cli, image_folder: Path, masked: str) -> None:
    words = ("finetune-sparse", "--init-from", masked, "--data-path", image_folder, *QUICK, "--calibrate-steps", 2)
    first = cli(*words, "--calibrate-images", 6, "--output-dir", "run", "--json")
    before = Path("run/metrics.jsonl").read_text()
    again = cli(*words, "--calibrate-images", 6, "--output-dir", "run", "--json", "--resume")
    assert (again.code, json.loads(again.out)) == (0, json.loads(first.out)), again.err
    assert Path("run/metrics.jsonl").read_text() == before


@pytest.mark.parametrize("layout", ["train and val", "one folder"])
def test_pictures_without_classes(cli: Cli, image_folder: Path, masked: str, tmp_path: Path, layout: str) -> None:
    root = tmp_path / "flat"
    for split in ("train", "val"):
        folder = root / split if layout == "train and val" else root
        folder.mkdir(parents=True, exist_ok=True)
        for path in image_folder.glob(f"{split}/*/*.jpg"):
            shutil.copy(path, folder / f"{split}{path.name}")
    words = ("--data-path", root, "--workers", 0)
    outcome = cli("finetune-sparse", "--init-from", masked, *words, *QUICK[:3], "--epochs", 0, *CALIBRATE[:2],
                  "--calibrate-images", 12, "--output-dir", "run", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["images"] == (13 if layout == "train and val" else 33 // 5)
    dumped = cli("dump-attn", "--checkpoint", masked, *words)
    assert dumped.code == 0, dumped.err
    for told in (outcome.err, dumped.err):
        assert told.count("every fifth of its images is kept to judge by") == (layout == "one folder")


def test_labels_that_are_there_are_not_looked_at(
    cli: Cli, image_folder: Path, masked: str, tmp_path: Path
) -> None:
    """More classes than any head would have, and others in each split."""
    root = tmp_path / "other"
    for split in ("train", "val"):
        for number, path in enumerate(sorted(image_folder.glob(f"{split}/*/*.jpg"))):
            (root / split / f"{split}{number}").mkdir(parents=True)
            shutil.copy(path, root / split / f"{split}{number}" / path.name)
    words = ("finetune-sparse", "--init-from", masked, *QUICK, "--calibrate-steps", 0, "--json")
    here = cli(*words, "--data-path", root, "--output-dir", "here")
    assert here.code == 0, here.err
    there = cli(*words, "--data-path", image_folder, "--output-dir", "there")
    for name in METRICS:
        assert json.loads(here.out)[name] == pytest.approx(json.loads(there.out)[name], rel=1e-6)


def test_the_dense_models_score_stands_beside(
    cli: Cli, image_folder: Path, tiny_config: ModelConfig, config: ModelConfig
) -> None:
    """Of a model with a head on labelled images, where the run ends without training."""
    dense, sparse = save(tiny_config, "dense.safetensors"), save(tiny_config, "sparse.safetensors", sparse=True)
    data = ("--data-path", image_folder, "--workers", 0)
    words = ("finetune-sparse", "--init-from", sparse, *data, *QUICK[:3], "--calibrate-steps", 0)
    dense_score = cli("eval", "--checkpoint", dense, *data).out.strip()
    sparse_score = cli("eval", "--checkpoint", sparse, *data).out.strip()
    assert dense_score != sparse_score
    outcome = cli(*words, "--epochs", 0, "--output-dir", "run")
    assert outcome.out == f"{sparse_score} (dense: {dense_score.removeprefix('* ')})\n"
    assert f"Without training: {outcome.out}" in outcome.err
    logged = json.loads(Path("run/metrics.jsonl").read_text())
    assert f"Acc@1 {logged['reference_acc1']:.3f}" in dense_score
    result = json.loads(cli(*words, "--epochs", 0, "--output-dir", "json", "--json").out)
    assert result["reference"]["name"] == "dense"
    assert f"loss {result['reference']['loss']:.3f}" in dense_score
    # The teacher, where one is named; nothing behind epochs, which would cost a pass over the images.
    named = cli(*words, "--epochs", 0, "--distill-from", dense, "--output-dir", "named")
    assert named.out == f"{sparse_score} (teacher: {dense_score.removeprefix('* ')})\n"
    trained = cli(*words, "--epochs", 1, "--output-dir", "trained")
    assert trained.out.count("Acc@1") == 1, trained.err
