"""``vitcod eval`` as a user types it: one model, several, programs, and results in a file."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Cli
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import vitcod_cli
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import SilentReporter

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")


def test_one_model_says_what_it_evaluated(
    cli: Cli, data: tuple[object, ...], models: list[str], masks: list[str]
) -> None:
    line = cli("eval", "--checkpoint", models[0], "--mask", masks[1], *data).out
    found = json.loads(cli("eval", "--checkpoint", models[0], "--mask", masks[1], *data, "--json").out)
    assert line == f"* Acc@1 {found['acc1']:.3f} Acc@5 {found['acc5']:.3f} loss {found['loss']:.3f}\n"
    assert found["images"] == 13
    assert found["acc1_low"] < found["acc1"] < found["acc1_high"]
    assert (found["checkpoint"], found["mask"]) == (models[0], masks[1])
    assert len(found["sha256"]) == len(found["mask_sha256"]) == 64
    assert found["sparsity"] == pytest.approx(0.7, abs=0.02)
    assert (found["precision"], found["device"]) == ("float32", "cpu")
    assert (found["crop_pct"], found["input_size"]) == (1.0, [3, 32, 32])
    assert found["data"] | {"path": "", "dataset": ""} == {
        **{"path": "", "dataset": "", "split": "val", "labelled": True, "images": 13, "unreadable": 0}
    }
    assert (found["svd_type"], found["agreement"], found["difference"]) == ("none", None, None)
    assert found["versions"].keys() == {"vitcod", "torch", "timm", "python"}
    assert found["model_config"]["num_classes"] == 5


def test_several_models_have_the_figures_that_they_have_alone(
    cli: Cli, data: tuple[object, ...], models: list[str], masks: list[str]
) -> None:
    outcome = cli("eval", "--checkpoint", *models, *data, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["models"]
    for checkpoint, each in zip(models, found, strict=True):
        alone = json.loads(cli("eval", "--checkpoint", checkpoint, *data, "--json").out)
        assert [each[name] for name in ("acc1", "acc5", "images", "sha256")] == [
            alone[name] for name in ("acc1", "acc5", "images", "sha256")
        ]
        assert each["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert [each["name"] for each in found] == ["run0/last.safetensors", "run1/last.safetensors"]
    assert found[0]["difference"] is None
    assert found[1]["difference"]["points"] == pytest.approx(found[1]["acc1"] - found[0]["acc1"])
    # One checkpoint, two masks; and a mask for each.
    for checkpoints in (models[:1], models):
        outcome = cli("eval", "--checkpoint", *checkpoints, "--mask", *masks, *data, "--against", models[0])
        assert outcome.code == 0, outcome.err
        lines = outcome.out.splitlines()
        assert max(map(len, lines)) <= 80
        assert [re.findall(r"\d+\.\d%", line) for line in lines[2:5]] == [["0.0%"], ["30.0%"], ["70.0%"]]
        assert all(title in lines[0] for title in ("Acc@1", "Acc@5", "loss", "agree", "to first [95 %]", " p"))


def test_a_model_against_itself(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    words = ("eval", "--checkpoint", models[0], "--against", models[0], *data, "--json")
    first, second = json.loads(cli(*words).out)["models"]
    assert (second["agreement"], second["kl"]) == (100, 0)
    assert (second["difference"]["gained"], second["difference"]["lost"]) == (0, 0)
    assert first["name"] != second["name"]


def test_without_labels_there_is_agreement(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    outcome = cli("eval", "--checkpoint", models[1], "--against", models[0], *data, "--dataset", "images")
    assert outcome.code == 0, outcome.err
    assert "Acc@1" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    found = json.loads(
        cli("eval", "--checkpoint", models[1], "--against", models[0], *data, "--dataset", "images", "--json").out
    )
    assert found["data"]["labelled"] is False
    assert found["models"][1]["agreement"] == found["models"][1]["acc1"]


def test_rows_are_added_to_a_file(cli: Cli, data: tuple[object, ...], models: list[str], masks: list[str]) -> None:
    for name in ("results.csv", "results.json"):
        words = ("eval", "--checkpoint", models[0], *data, "--results-file", name)
        assert cli(*words).code == 0
        outcome = cli(*words, "--mask", *masks, "--against", models[0])
        assert outcome.code == 0, outcome.err
        with open(name, newline="") as file:
            rows = list(csv.DictReader(file)) if name.endswith(".csv") else json.load(file)
        assert [Path(row["mask"]).name for row in rows] == ["", "", *masks]
        assert {row["model"] for row in rows} == {"deit_tiny_patch16_224"}
        assert all(float(row["top1"]) + float(row["top1_err"]) == pytest.approx(100) for row in rows)
        assert list(rows[0])[:5] == ["model", "top1", "top1_err", "top5", "top5_err"]


@pytest.mark.parametrize("content", ["model,top1\na,1\n", "", "{}", "[1]", '"'])
@pytest.mark.parametrize("name", ["r.csv", "r.json"])
def test_a_file_of_something_else_is_left_alone(cli: Cli, content: str, name: str) -> None:
    """Before anything is read: the checkpoint isn't there."""
    Path(name).write_text(content)
    outcome = cli("eval", "--checkpoint", "nowhere", "--data-path", "nowhere", "--results-file", name)
    assert outcome.code == 1
    assert f"--results-file {name} can't be added to" in outcome.err
    assert Path(name).read_text() == content


def test_what_cannot_be_compared(cli: Cli, data: tuple[object, ...], models: list[str], masks: list[str]) -> None:
    words = (
        "finetune-dense",
        "--model",
        "deit_tiny_patch16_224",
        *KWARGS,
        *data,
        "--batch-size",
        10,
        "--epochs",
        0,
    )
    assert cli(*words, "--no-repeated-aug", "--img-size", 48, "--output-dir", "large").code == 0
    larger = cli("eval", "--checkpoint", models[0], "large/last.safetensors", *data)
    assert larger.code == 1
    assert "takes images of 32x32 pixels" in larger.err
    assert "48x48" in larger.err
    wrong = cli("eval", "--checkpoint", *models, "--mask", *masks, masks[0], *data)
    assert wrong.code == 1
    assert "--checkpoint names 2 models and --mask 3 masks" in wrong.err
    classes = cli("finetune-dense", *MODEL, *KWARGS, *data, "--num-classes", 7, "--batch-size", 10, "--epochs", 0)
    assert classes.code == 1  # no folder for it
    lost = cli("eval", "--checkpoint", models[0], "--against", "nowhere.pth", *data)
    assert lost.code == 1
    assert "--against nowhere.pth" in lost.err


def test_a_model_of_other_classes_is_no_match(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    words = ("finetune-dense", *MODEL, *KWARGS, *data, "--num-classes", 7, "--batch-size", 10, "--epochs", 0)
    assert cli(*words, "--no-repeated-aug", "--output-dir", "seven").code == 0
    outcome = cli("eval", "--checkpoint", models[0], "seven/last.safetensors", *data)
    assert outcome.code == 1
    assert "5 classes and seven/last.safetensors 7" in outcome.err


def test_from_python_one_file_is_enough(models: list[str], image_folder: Path) -> None:
    settings = vitcod_cli.DataSettings(data_path=str(image_folder), workers=0)
    one = vitcod_cli.EvalOptions(checkpoint=models[0], data=settings)  # type: ignore[arg-type]
    assert one.checkpoint == [models[0]]
    assert vitcod_cli.evaluate(one).images == 13
    both = vitcod_cli.EvalOptions(checkpoint=models, data=settings)
    assert len(vitcod_cli.evaluate_models(both).models) == 2
    with pytest.raises(vitcod_cli.VitcodError, match="takes one model"):
        vitcod_cli.evaluate(both)


def test_a_reference_that_does_not_name_its_model(
    cli: Cli, data: tuple[object, ...], models: list[str], plain: str
) -> None:
    """As the dense weights of timm are, beside a sparse model of ours."""
    outcome = cli("eval", "--checkpoint", models[0], "--against", plain, *data, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["models"][1]["agreement"] == 100
    both = cli("eval", "--checkpoint", plain, *MODEL, *KWARGS, "--against", plain, *data)
    assert both.code == 0, both.err


def test_a_config_file_may_name_one_checkpoint(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    Path("one.yaml").write_text(f"checkpoint: {models[0]}\n")
    Path("two.yaml").write_text(f"checkpoint: [{models[0]}, {models[1]}]\n")
    assert cli("eval", "--config", "one.yaml", *data).out.startswith("* Acc@1 ")
    assert len(cli("eval", "--config", "two.yaml", *data).out.splitlines()) > 4


def test_models_with_a_norm_of_their_own(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    """A ViT's images have mean 0.5: beside a DeiT, which has ImageNet's, it is as good as alone."""
    words = ("finetune-dense", "--model", "vit_tiny_patch16_224", "--img-size", 32, *KWARGS, *data, "--epochs", 0)
    assert cli(*words, "--batch-size", 10, "--no-repeated-aug", "--output-dir", "vit").code == 0
    alone = json.loads(cli("eval", "--checkpoint", "vit/last.safetensors", *data, "--json").out)
    assert alone["mean"] == [0.5] * 3
    beside = cli("eval", "--checkpoint", models[0], "vit/last.safetensors", *data, "--json")
    assert json.loads(beside.out)["models"][1]["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_without_labels_and_without_a_reference(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    error = cli("eval", "--checkpoint", models[0], *data, "--dataset", "images").error
    assert "--against" in error


def test_features_are_no_choices(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    error = cli("eval", "--checkpoint", models[0], *data, "--num-classes", 0).error
    assert "gives features; name the model whose features they should be (--against CHECKPOINT)" in error


@pytest.mark.parametrize("name", ["r.csv", "r.json"])
def test_features_have_a_results_file_of_their_own(
    cli: Cli, data: tuple[object, ...], models: list[str], headless: list[str], name: str
) -> None:
    words = ("eval", "--checkpoint", headless[1], "--against", headless[0], *data, "--results-file", name)
    for _ in range(2):
        outcome = cli(*words, "--json")
        assert outcome.code == 0, outcome.err
    content = Path(name).read_text(encoding="utf-8")
    rows = json.loads(content) if name.endswith("json") else list(csv.DictReader(content.splitlines()))
    assert [row["checkpoint"] for row in rows] == 2 * [headless[0], headless[1]]
    found = json.loads(outcome.out)["models"][1]
    for key in ("cosine", "cosine_p5", "relative_error", "images"):
        assert float(rows[-1][key]) == pytest.approx(found[key], abs=1e-6)
    assert rows[-1]["against"] == headless[0]
    # Accuracies are no rows of the same table.
    assert (
        f"--results-file {name} can't be added to"
        in cli("eval", "--checkpoint", models[0], *data, "--results-file", name).error
    )
    assert Path(name).read_text(encoding="utf-8") == content


def test_features_of_pictures_in_any_folders(
    cli: Cli, image_folder: Path, headless: list[str], tmp_path: Path
) -> None:
    """Nobody looks at the labels, so there need not be any."""
    flat = tmp_path / "flat"
    (flat / "val").mkdir(parents=True)
    for number, path in enumerate(sorted(image_folder.glob("val/*/*.jpg"))):
        shutil.copy(path, flat / "val" / f"{number}.jpg")
    words = ("eval", "--checkpoint", headless[1], "--against", headless[0], "--workers", 0, "--json")
    loose, in_classes = (cli(*words, "--data-path", folder) for folder in (flat, image_folder))
    assert loose.code == 0, loose.err
    one, other = (json.loads(outcome.out)["models"][1] for outcome in (loose, in_classes))
    assert one["images"] == other["images"] == 13
    assert one["relative_error"] == pytest.approx(other["relative_error"], rel=1e-6)


@pytest.fixture
def headless(tiny_config: ModelConfig, tmp_path: Path) -> list[str]:
    """A dense model without a head, and the same under a mask."""
    torch.manual_seed(0)
    model = build_model(tiny_config.changed(num_classes=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    paths = [str(tmp_path / name) for name in ("backbone.safetensors", "sparse.safetensors")]
    save_model(paths[0], model, {})
    keep = torch.rand(attention_shape(model)) < 0.3
    keep[..., 0] = True
    set_keep_mask(model, keep)
    save_model(paths[1], model, {})
    return paths


def test_features_are_compared(cli: Cli, image_folder: Path, headless: list[str]) -> None:
    words = ("eval", "--checkpoint", *headless, "--against", headless[0], "--data-path", image_folder)
    outcome = cli(*words, "--workers", 0, "--json")
    assert outcome.code == 0, outcome.err
    reference, same, sparse = json.loads(outcome.out)["models"]
    for one in (reference, same):
        assert (one["cosine"], one["relative_error"]) == pytest.approx((1, 0), abs=1e-6)
    none = SilentReporter()
    dense, masked = (load_model(ModelSettings(), path, flag="", reporter=none).eval() for path in headless)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    transform, images = preprocess_of(dense).eval_transform(), []
    for path in sorted(image_folder.glob("val/*/*.jpg")):
        with Image.open(path) as picture:
            images.append((transform(picture.convert("RGB")) / 255 - mean) / std)
    with torch.no_grad():
        one, other = dense(torch.stack(images)).double(), masked(torch.stack(images)).double()
    cosine = torch.nn.functional.cosine_similarity(one, other)
    assert sparse["cosine"] == pytest.approx(float(cosine.mean()), abs=1e-5)
    error = (other - one).norm(dim=1) / one.norm(dim=1)
    assert sparse["relative_error"] == pytest.approx(float(error.mean()), rel=1e-4)
    assert sparse["cosine"] < 0.999
    lines = cli(*words, "--workers", 0).out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert f"{sparse['cosine']:.4f}" in lines[4]


def test_features_on_two_processes_and_without_labels(
    run_cli: Any, image_folder: Path, headless: list[str]
) -> None:
    words = ("eval", "--checkpoint", headless[1], "--against", headless[0], "--data-path", image_folder, "--json")
    alone, both, unlabelled = (
        run_cli(*words, "--workers", 0, *more)
        for more in ((), ("--nproc-per-node", 2), ("--dataset", "images", "--val-images", 5))
    )
    assert (alone.returncode, both.returncode, unlabelled.returncode) == (0, 0, 0), both.stderr + unlabelled.stderr
    first, second = (json.loads(done.stdout)["models"][1] for done in (alone, both))
    for name in ("cosine", "cosine_p5", "relative_error", "images"):
        assert second[name] == pytest.approx(first[name], rel=1e-5)
    assert json.loads(unlabelled.stdout)["models"][1]["images"] == 5


def test_a_reference_loses_its_head_where_features_are_compared(
    cli: Cli, data: tuple[object, ...], models: list[str], plain: str
) -> None:
    """Weights of timm, and a checkpoint of ours, both with a head."""
    for against in (plain, models[0]):
        words = ("eval", "--checkpoint", models[0], "--num-classes", 0, "--against", against, *data, "--json")
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["models"][1]["cosine"] == pytest.approx(1, abs=1e-6)


def test_features_of_other_widths(
    cli: Cli, data: tuple[object, ...], headless: list[str], tiny_config: ModelConfig
) -> None:
    wide = tiny_config.changed(num_classes=0, model_kwargs={**tiny_config.model_kwargs, "embed_dim": 48})
    save_model("wide.safetensors", build_model(wide), {})
    error = cli("eval", "--checkpoint", "wide.safetensors", "--against", headless[0], *data).error
    assert "24 features" in error
    assert "48" in error


def test_unreadable_images_are_counted(cli: Cli, image_folder: Path, models: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(image_folder, folder)
    next(folder.glob("val/*/*.jpg")).write_bytes(b"no picture")
    words = ("eval", "--checkpoint", models[0], "--data-path", folder, "--workers", 0, "--json")
    data = json.loads(cli(*words).out)["data"]
    assert (data["images"], data["unreadable"]) == (12, 1)


@pytest.mark.parametrize("name", ["r.csv", "r.json"])
def test_an_interrupted_write_loses_no_row(
    cli: Cli, data: tuple[object, ...], models: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("eval", "--checkpoint", models[0], *data, "--results-file", name)
    assert cli(*words).code == 0
    before = Path(name).read_text()

    def stopped(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", stopped)
        assert cli(*words).code == 130
    assert Path(name).read_text() == before
    assert not [path.name for path in Path().iterdir() if path.name.startswith(f".{name}")]


@pytest.mark.slow
def test_two_processes_find_the_same(run_cli: Any, data: tuple[object, ...], models: list[str]) -> None:
    words = ("eval", "--checkpoint", *models, *data, "--threads", 1, "--json", "--results-file", "r.csv")
    one, two = run_cli(*words), run_cli(*words, "--nproc-per-node", 2)
    assert two.returncode == 0, two.stderr
    for mine, theirs in zip(json.loads(two.stdout)["models"], json.loads(one.stdout)["models"], strict=True):
        assert mine["difference"] == pytest.approx(theirs["difference"])
        assert (mine["acc1"], mine["images"]) == (theirs["acc1"], 13)
    assert os.path.getsize("r.csv")
    assert len(Path("r.csv").read_text().splitlines()) == 5


def test_attention_by_tiles_gives_the_same_figures(
    cli: Cli, data: tuple[object, ...], models: list[str], masks: list[str]
) -> None:
    """Only the dense model beside it has no tiles to leave out."""
    words = ("eval", "--checkpoint", models[0], "--against", models[0], "--json", *data)
    usual = json.loads(cli(*words, "--mask", masks[1]).out)
    tiled = json.loads(cli(*words, "--mask", masks[1], "--attention", "flex").out)
    assert (usual["attention"], tiled["attention"]) == ("auto", "flex")
    for before, after in zip(usual["models"], tiled["models"], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert after["acc1"] == before["acc1"]
    error = cli(*words, "--attention", "measured").error
    assert error.startswith("--attention measured leaves out what a mask prunes, and there is no mask")
