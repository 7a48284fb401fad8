"""``vitcod eval`` and ``vitcod bench`` of exported programs."""

from __future__ import annotations

import csv
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli

import vitcod_cli.evaluation.programs as programs

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
    assert cli("export", "--checkpoint", models[0], "--output", "m.onnx").code == 0
    content = Path("m.onnx").read_bytes()
    Path("half.onnx").write_bytes(content[: len(content) // 2])
    half = cli("eval", "--checkpoint", "half.onnx", *data)
    assert half.code == 1
    assert "half.onnx can't be run by onnxruntime" in half.err
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


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=needs_onnx), "pt2"])
def test_a_program_of_others_needs_its_models_name(
    cli: Cli, data: tuple[object, ...], models: list[str], form: str
) -> None:
    """Its size, and whether it takes bytes, it says itself; the name gives mean and standard deviation."""
    assert cli("export", "--checkpoint", models[0], "--output", f"m.{form}", "--batch-size", 4).code == 0
    without_metadata(f"m.{form}", f"foreign.{form}")
    words = ("eval", "--checkpoint", f"foreign.{form}", *data, "--trust-program")
    assert "name the timm model that it was made from with --model" in cli(*words).error
    assert "is 48; a program keeps its size" in cli(*words[:2], f"m.{form}", *words[3:], "--img-size", 48).error
    named = (*words, "--model", "deit_tiny_patch16_224")
    assert cli(*named).out == cli("eval", "--checkpoint", models[0], *data).out


def without_metadata(source: str, target: str) -> None:
    if source.endswith(".onnx"):
        import onnx

        program = onnx.load(source)
        del program.metadata_props[:]
        onnx.save(program, target)
        return
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith("vitcod.json"):
                new.writestr(name, old.read(name))


LIES: dict[str, tuple[Any, str]] = {
    "infinite": (lambda info: info["input"].update(input_size=[3, float("inf"), 32]), "says wrongly how"),
    "negative": (lambda info: info["input"].update(std=[-1, 1, 1]), "says wrongly how"),
    "no input": (lambda info: info.update(input=[1, 2]), "says wrongly how"),
    "other size": (lambda info: info["input"].update(input_size=[3, 16, 16]), "not [3, 16, 16]"),
    "no head": (lambda info: info["model_config"].update(num_classes=0), "has no classes to choose from"),
    "kind": (lambda info: info["input"].update(dtype="uint8"), ""),
    "batch": (lambda info: info["input"].update(batch_size=[]), ""),
    "classes": (lambda info: info["model_config"].update(num_classes=3), ""),
    "sparsity": (lambda info: info.update(sparsity=1e300), ""),
    "name": (lambda info: info["model_config"].update(model="x" * 9999, svd_type={}), ""),
    "nothing": (lambda info: info.update(model_config=[]), ""),
}


@needs_onnx
def test_what_a_program_says_of_itself_is_checked(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    """What matters is refused in a sentence; what the program knows better, or nobody needs, does no harm."""
    import onnx

    assert cli("export", "--checkpoint", models[0], "--output", "m.onnx").code == 0
    expected = cli("eval", "--checkpoint", models[0], *data).out
    for name, (change, message) in LIES.items():
        program = onnx.load("m.onnx")
        info = json.loads(program.metadata_props[0].value)
        change(info)
        program.metadata_props[0].value = json.dumps(info)
        onnx.save(program, "lie.onnx")
        outcome = cli("eval", "--checkpoint", "lie.onnx", *data)
        if message:
            assert message in outcome.error, name
            continue
        assert outcome.out == expected, (name, outcome.err)
        table = cli("eval", "--checkpoint", "lie.onnx", "--against", models[0], *data)
        assert max(map(len, table.out.splitlines())) <= 80, name


@needs_onnx
def test_a_program_is_known_by_what_is_in_it(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    assert cli("export", "--checkpoint", models[0], "--output", "m.onnx").code == 0
    Path("m.onnx").rename("renamed")
    assert cli("eval", "--checkpoint", "renamed", *data).out == cli("eval", "--checkpoint", models[0], *data).out


@needs_onnx
def test_a_program_is_as_exact_as_it_is(cli: Cli, data: tuple[object, ...], models: list[str]) -> None:
    """--precision is of models; a program beside one says its own."""
    assert cli("export", "--checkpoint", models[0], "--output", "m.onnx").code == 0
    words = (
        "eval",
        "--checkpoint",
        "m.onnx",
        *data,
        "--precision",
        "bfloat16",
        "--json",
        "--results-file",
        "r.csv",
    )
    found = json.loads(cli(*words, "--against", models[0]).out)
    assert (found["precision"], found["models"][1]["precision"]) == ("bfloat16", "float32")
    assert json.loads(cli(*words).out)["precision"] == "float32"
    with open("r.csv", newline="") as file:
        assert [row["precision"] for row in csv.DictReader(file)] == ["bfloat16", "float32", "float32"]
    assert found["versions"]["onnxruntime"]


@needs_onnx
def test_bench_of_programs(cli: Cli, models: list[str], plain: str) -> None:
    assert cli("export", "--checkpoint", models[0], "--output", "m.onnx", "--batch-size", 4).code == 0
    quick = ("--seconds", 0, "--repeats", 1)
    outcome = cli("bench", "--checkpoint", "m.onnx", "--against", plain, *quick, "--json")
    assert outcome.code == 0, outcome.err
    assert "takes batches of 4, whatever --batch-size says" in outcome.err
    first, second = json.loads(outcome.out)["measurements"]
    assert first["peak_memory_bytes"] is None, "nobody knows it"
    assert first["batch_size"] == second["batch_size"] == 4
    assert "--against timm needs a checkpoint" in cli("bench", "--checkpoint", "m.onnx", "--against", "timm").error


@pytest.mark.parametrize("program", [pytest.param("m.onnx", marks=needs_onnx), "m.pt2"])
def test_without_the_package_or_trust(
    cli: Cli, models: list[str], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("export", "--checkpoint", models[0], "--output", program).code == 0
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    for command in ("eval", "bench"):
        error = cli(command, "--checkpoint", program).error
        assert ("pip install 'vitcod[onnx]'" if program == "m.onnx" else "--trust-program") in error


@needs_onnx
@pytest.mark.slow
def test_programs_of_a_real_model_are_right_about_the_same_images(cli: Cli, shared: Path) -> None:
    weights = shared / "weights" / "deit_tiny_patch16_224.safetensors"
    model = ("--model", "deit_tiny_patch16_224")
    mask = ("--mask", shared / "golden" / "vitcod_deit_tiny_info_0.95.npy")
    files = ["any.onnx", "bytes.onnx", "any.pt2"]
    for name in files:
        extra = ("--input", "uint8", "--batch-size", 16) if name.startswith("bytes") else ()
        outcome = cli("export", "--checkpoint", weights, *model, *mask, "--output", name, *extra)
        assert outcome.code == 0, outcome.err
    data = ("--data-path", shared / "data" / "imagenet-sample", "--val-images", 60, "--json")
    alone = json.loads(cli("eval", "--checkpoint", weights, *model, *mask, *data).out)
    outcome = cli("eval", "--checkpoint", *files, "--against", weights, *model, *data, "--trust-program")
    assert outcome.code == 0, outcome.err
    dense, *found = json.loads(outcome.out)["models"]
    assert dense["acc1"] > alone["acc1"], "the mask is in the programs"
    for each in found:
        assert [each[name] for name in ("acc1", "acc5", "images")] == [alone["acc1"], alone["acc5"], 60]
        assert each["loss"] == pytest.approx(alone["loss"], abs=1e-4)
        assert each["difference"]["points"] == pytest.approx(alone["acc1"] - dense["acc1"])
