"""``vitcod eval`` as a user types it: one model, several, programs, and results in a file."""

from __future__ import annotations

import csv
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

import vitcod_cli

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")


@pytest.fixture
def data(image_folder: Path) -> tuple[object, ...]:
    return ("--data-path", image_folder, "--workers", 0)


@pytest.fixture
def models(cli: Cli, data: tuple[object, ...]) -> list[str]:
    """Two models of other weights."""
    for seed in (0, 1):
        words = ("finetune-dense", *MODEL, *KWARGS, *data, "--seed", seed, "--batch-size", 10)
        assert cli(*words, "--epochs", 0, "--no-repeated-aug", "--output-dir", f"run{seed}").code == 0
    return ["run0/last.safetensors", "run1/last.safetensors"]


@pytest.fixture
def masks(cli: Cli, data: tuple[object, ...], models: list[str]) -> list[str]:
    assert cli("dump-attn", "--checkpoint", models[0], *data).code == 0
    for sparsity in (0.3, 0.7):
        words = ("gen-mask", "--attn-map", "attn.safetensors", "--sparsity", sparsity)
        assert cli(*words, "--output", f"mask{sparsity}.safetensors").code == 0
    return ["mask0.3.safetensors", "mask0.7.safetensors"]


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
    assert found["data"]["split"] == "val"
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
        assert [line.split()[1] for line in lines[2:5]] == ["0.0%", "30.0%", "70.0%"]


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


needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason="needs vitcod[onnx]"
)


@needs_onnx
def test_onnx_programs_are_as_good_as_their_checkpoint(
    cli: Cli, data: tuple[object, ...], models: list[str], masks: list[str]
) -> None:
    for name, extra in (("any.onnx", ()), ("bytes.onnx", ("--input", "uint8", "--batch-size", 4))):
        assert cli("export", "--checkpoint", models[0], "--mask", masks[0], "--output", name, *extra).code == 0
    words = ("eval", "--checkpoint", "any.onnx", "bytes.onnx", "--against", models[0], *data)
    outcome = cli(*words, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["models"]
    expected = json.loads(cli("eval", "--checkpoint", models[0], "--mask", masks[0], *data, "--json").out)
    for each in found[1:]:
        assert each["acc1"] == expected["acc1"]
        assert each["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert each["sparsity"] == pytest.approx(expected["sparsity"])
    line = cli("eval", "--checkpoint", "bytes.onnx", *data, "--batch-size", 3).out
    assert line.startswith(f"* Acc@1 {expected['acc1']:.3f}")
    bench = cli(
        "bench", "--checkpoint", "bytes.onnx", "--against", models[0], "--seconds", 0, "--repeats", 2, "--json"
    )
    assert bench.code == 0, bench.err
    measured = json.loads(bench.out)
    assert {one["mode"] for one in measured["measurements"]} == {"forward"}
    assert {one["batch_size"] for one in measured["measurements"]} == {4}
    assert measured["models"]["model"]["static"] is None
    assert cli("bench", "--checkpoint", "bytes.onnx", "--seconds", 0, "--repeats", 1).code == 0


@needs_onnx
def test_damaged_and_foreign_onnx_files(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    import onnx

    assert cli("export", "--checkpoint", models[0], "--output", "m.onnx").code == 0
    content = Path("m.onnx").read_bytes()
    Path("half.onnx").write_bytes(content[: len(content) // 2])
    half = cli("eval", "--checkpoint", "half.onnx", *data)
    assert half.code == 1
    assert "half.onnx can't be run by onnxruntime" in half.err
    program = onnx.load("m.onnx")
    del program.metadata_props[:]
    onnx.save(program, "foreign.onnx")
    foreign = cli("eval", "--checkpoint", "foreign.onnx", *data)
    assert foreign.code == 1
    assert "doesn't say how its images are to be made" in foreign.err
    masked = cli("eval", "--checkpoint", "m.onnx", "--mask", "mask", *data)
    assert masked.code == 1
    assert "export it with its mask" in masked.err


def test_torch_programs_need_trust(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    assert cli("export", "--checkpoint", models[0], "--output", "m.pt2").code == 0
    refused = cli("eval", "--checkpoint", "m.pt2", *data)
    assert refused.code == 1
    assert "say --trust-program if you made it" in refused.err
    outcome = cli("eval", "--checkpoint", "m.pt2", "--against", models[0], *data, "--trust-program", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["models"][1]["agreement"] == 100


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
