"""``vitcod bench`` as people and programs meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ROOT, Cli, the_error

import vitcod_cli
import vitcod_cli.bench.measure
from vitcod_cli.artifacts.mask import Mask, read_mask, write_mask
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.bench.masks_report import MasksReport, MaskTimes
from vitcod_cli.bench.measure import Comparison, Measurement, Results
from vitcod_cli.bench.timing import Spread
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.load import save_model

QUICK = ("--threads", 1, "--seconds", 0, "--repeats", 2, "--warmup", 1)
TINY = (
    "--model deit_tiny_patch16_224 --img-size 32 --num-classes 5 --model-kwargs patch_size=8 embed_dim=24 depth=2"
)
TINY_MODEL = (*TINY.split(), "num_heads=3")


@pytest.fixture
def sparse_checkpoint(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """Low-rank, with a mask that keeps the CLS token's row and column and the diagonal."""
    model = build_model(tiny_config.changed(svd_type="mix_head_fc_qk"))
    keep = torch.eye(17, dtype=torch.bool).expand(attention_shape(model)).clone()
    keep[..., 0] = keep[..., 0, :] = True
    set_keep_mask(model, keep)
    path = tmp_path / "sparse.safetensors"
    save_model(path, model, {})
    return path


def published_mask(keep: float = 0.25) -> str:
    """A published mask of about this density; True = pruned."""
    pruned = np.random.default_rng(0).random((2, 3, 17, 17)) > keep
    pruned[..., range(17), range(17)] = False
    np.save("mask.npy", pruned)
    return "mask.npy"


def bench(cli: Cli, *words: object) -> dict[str, Any]:
    outcome = cli("bench", *QUICK, "--json", *words)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_json_of_a_model_name(run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_cli("bench", *TINY_MODEL, *QUICK, "--batch-size", 1, 3, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"models", "environment", "measurements", "comparisons", "mask_verdict"}
    (model,) = found["models"].values()
    assert model["source"] == "random weights"
    assert (model["tokens"], model["mask"], model["num_classes"]) == (17, None, 5)
    assert model["static"]["macs"] == 336_600
    assert model["static"]["saved_share"] == 0
    place = found["environment"]
    assert place["vitcod"] == vitcod_cli.__version__
    assert place["torch"] == torch.__version__
    assert (place["device"], place["threads"], place["precision"], place["compile"]) == (
        "cpu",
        1,
        "float32",
        False,
    )
    cases = [(row["mode"], row["batch_size"], row["model"], row["repeats"]) for row in found["measurements"]]
    assert cases == [(mode, size, "model", 2) for mode in ("forward", "training") for size in (1, 3)]
    for row in found["measurements"]:
        assert 0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["iqr_ms"] == pytest.approx(row["q3_ms"] - row["q1_ms"])
        assert row["images_per_second"] == pytest.approx(1000 * row["batch_size"] / row["median_ms"])
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] >= 4 * model["static"]["parameters"]
        assert row["out_of_memory"] is False
    assert found["comparisons"] == []
    assert found["mask_verdict"] is None


def test_a_mask_is_compared_with_none(cli: Cli, tiny_checkpoint: Path) -> None:
    words = ("--checkpoint", tiny_checkpoint, "--mask", published_mask(), "--batch-size", 2)
    found = bench(cli, *words, "--no-training")
    assert {name: words["mask"] for name, words in found["models"].items()} == {
        "model": "mask.npy",
        "no mask": None,
    }
    kept = int((~np.load("mask.npy")).sum())
    assert found["models"]["model"]["static"]["kept_attention_macs"] == 2 * 8 * kept
    assert [(row["against"], row["pairs"]) for row in found["comparisons"]] == [("no mask", 2)]
    assert found["mask_verdict"].startswith(
        f"The mask leaves out {100 * (1 - kept / 1734):.1f} % of the attention"
    )


def test_a_sparse_checkpoint_brings_its_mask(cli: Cli, sparse_checkpoint: Path) -> None:
    found = bench(cli, "--checkpoint", sparse_checkpoint, "--batch-size", 2, "--against", "timm")
    masks = {name: words["mask"] for name, words in found["models"].items()}
    assert masks == {"model": "of the checkpoint", "no mask": None, "timm": None}
    types = {name: words["svd_type"] for name, words in found["models"].items()}
    assert types == {"model": "mix_head_fc_qk", "no mask": "mix_head_fc_qk", "timm": "none"}
    macs = {words["static"]["macs"] for words in found["models"].values()}
    assert macs == {336_600}, "folded auto-encoders cost nothing, a mask takes nothing away from what is computed"
    compared = [(row["mode"], row["against"], row["pairs"]) for row in found["comparisons"]]
    assert compared == [(mode, name, 2) for mode in ("forward", "training") for name in ("no mask", "timm")]


def test_against_itself(cli: Cli, tiny_checkpoint: Path) -> None:
    words = ("--checkpoint", tiny_checkpoint, "--against", tiny_checkpoint, "--batch-size", 2, "--repeats", 3)
    found = bench(cli, *words)
    assert [row["repeats"] for row in found["measurements"]] == [4] * 4
    assert [row["pairs"] for row in found["comparisons"]] == [4, 4]
    for row in found["comparisons"]:
        assert 0 < row["time_ratio_q1"] <= row["time_ratio"] <= row["time_ratio_q3"]


def test_against_another_architecture(cli: Cli, tiny_checkpoint: Path, tiny_config: ModelConfig) -> None:
    other = tiny_config.changed(
        model="deit_small_patch16_224",
        num_classes=7,
        img_size=(48, 40),
        model_kwargs={**tiny_config.model_kwargs, "depth": 1},
    )
    save_model("other.safetensors", build_model(other), {})
    words = ("--checkpoint", tiny_checkpoint, "--against", "other.safetensors", "--batch-size", 2)
    found = bench(cli, *words)
    assert found["models"]["against"]["model"] == "deit_small_patch16_224"
    assert found["models"]["against"]["tokens"] == 31
    assert len(found["comparisons"]) == 2


def test_against_a_checkpoint_that_does_not_name_its_model(
    cli: Cli, tiny_checkpoint: Path, tiny_config: ModelConfig
) -> None:
    torch.save({"model": build_model(tiny_config).state_dict()}, "plain.pth")
    found = bench(
        cli, "--checkpoint", tiny_checkpoint, "--against", "plain.pth", "--batch-size", 1, "--no-training"
    )
    assert found["models"]["against"]["source"] == "plain.pth"
    assert found["models"]["against"]["static"] == found["models"]["model"]["static"]


def test_the_file_is_not_changed(cli: Cli, tiny_checkpoint: Path) -> None:
    before = tiny_checkpoint.read_bytes()
    bench(cli, "--checkpoint", tiny_checkpoint, "--batch-size", 2)
    assert tiny_checkpoint.read_bytes() == before


@pytest.mark.parametrize("compared", [False, True])
def test_tables_fit_80_columns(cli: Cli, sparse_checkpoint: Path, compared: bool) -> None:
    words = ("--checkpoint", sparse_checkpoint.name, "--against", "timm") if compared else TINY_MODEL
    # The second size can't be had: more than any address space.
    outcome = cli("bench", *QUICK, *words, "--batch-size", 2, 10**12)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]
    assert "\x1b" not in outcome.out, "no colours in a pipe"
    text = " ".join(outcome.out.split())
    assert "336,600" in text
    assert text.count("out of memory") == (6 if compared else 2)
    assert ("The mask leaves out" in text) == compared
    assert ("auto-encoders are folded" in text) == compared
    assert ("Compared" in lines) == compared
    assert "…" not in text


@pytest.fixture
def two_masks(tiny_config: ModelConfig) -> tuple[str, str]:
    """Of 17 tokens, and of the 37 that the model has at 48 pixels."""
    for size in (32, 48):
        config = tiny_config.changed(img_size=(size, size))
        shape = attention_shape(build_model(config))
        keep = np.random.default_rng(0).random(shape) < 0.3
        keep[..., 0] = keep[..., 0, :] = True
        write_mask(f"m{size}.safetensors", Mask(keep, {"model_config": config.to_dict()}))
    return "m32.safetensors", "m48.safetensors"


def test_masks_of_several_sizes(cli: Cli, tiny_checkpoint: Path, two_masks: tuple[str, str]) -> None:
    found = bench(cli, "--checkpoint", tiny_checkpoint, "--masks", *two_masks, "--batch-size", 1, 3)
    assert [(one["mask"], one["img_size"], one["tokens"]) for one in found["masks"]] == [
        ("m32.safetensors", [32, 32], 17),
        ("m48.safetensors", [48, 48], 37),
    ]
    for one in found["masks"]:
        kept = read_mask(one["mask"]).keep
        assert one["sparsity"] == pytest.approx(1 - kept.mean())
        assert 0 < one["saved_share"] < one["sparsity"]
        assert [(row["mode"], row["batch_size"], row["against"]) for row in one["comparisons"]] == [
            ("forward", 1, "no mask"),
            ("forward", 3, "no mask"),
        ]
        assert all(row["mask_is"] in ("faster", "slower", "the same", "too noisy") for row in one["comparisons"])
    assert "At 32 pixels" in found["verdict"]
    assert "At 48 pixels" in found["verdict"]


def test_the_table_of_masks(cli: Cli, tiny_checkpoint: Path, two_masks: tuple[str, str]) -> None:
    words = ("bench", *QUICK, "--checkpoint", tiny_checkpoint.name, "--masks", *two_masks)
    outcome = cli(*words, "--batch-size", 2, 10**12)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]
    assert [line.split()[:4] for line in lines if line[:1] in "12" and "%" in line] == [
        ["1", "32", "17", "62.2%"],
        ["2", "48", "37", "66.1%"],
    ]
    assert outcome.out.count("out of memory") == 2
    assert "Mask 2 of 2: m48.safetensors" in outcome.err


def test_what_is_said_of_masks_that_pay_and_of_those_that_do_not() -> None:
    def timed(mask: str, size: int, ratio: float) -> MaskTimes:
        measured = [
            Measurement("forward", 8, name, [seconds] * 6, None)
            for name, seconds in (("model", ratio), ("no mask", 1))
        ]
        compared = Comparison("forward", 8, "no mask", Spread(ratio, ratio, ratio), 6)
        return MaskTimes(mask, (size, size), 17, 0.9, 0.3, Results(measured, [compared]))

    def verdict(*masks: MaskTimes) -> str:
        return MasksReport("model", {}, list(masks)).verdict

    slow, fast, faster = timed("slow", 32, 1.0), timed("fast", 48, 0.9), timed("faster", 48, 0.8)
    assert verdict(slow) == "At 32 pixels the mask saves no time that could be told here."
    assert verdict(slow, slow) == "At 32 pixels the masks save no time that could be told here."
    assert verdict(fast, slow) == (
        "At 32 pixels the mask saves no time that could be told here. At 48 pixels fast saves 10.0 % of the time."
    )
    assert verdict(fast, faster) == (
        "At 48 pixels faster saves 20.0 % of the time, the most; 2 of the 2 masks save some."
    )


def test_masks_that_do_not_fit_are_refused_before_any_is_timed(
    cli: Cli, tiny_checkpoint: Path, two_masks: tuple[str, str]
) -> None:
    words = ("bench", *QUICK, "--checkpoint", tiny_checkpoint)
    np.save("other.npy", np.zeros((2, 3, 5, 5), dtype=bool))
    outcome = cli(*words, "--masks", two_masks[0], "other.npy")
    assert "[2, 3, 17, 17]" in the_error(outcome)
    assert "Measuring" not in outcome.err
    assert "--masks nowhere" in the_error(cli(*words, "--masks", two_masks[0], "nowhere"))
    assert "leave --mask out" in the_error(cli(*words, "--masks", two_masks[0], "--mask", two_masks[1]))
    assert "leave --against out" in the_error(cli(*words, "--masks", two_masks[0], "--against", "timm"))
    # A size that is asked for goes before that of the mask, which then doesn't fit.
    assert "m48.safetensors" in the_error(cli(*words, "--masks", two_masks[1], "--img-size", 32))


def test_one_process_only(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "one process" in the_error(cli("bench", *TINY_MODEL, "--nproc-per-node", 2))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in the_error(cli("bench", *TINY_MODEL))


def test_mistakes(cli: Cli, tiny_checkpoint: Path, tiny_config: ModelConfig) -> None:
    assert the_error(cli("bench")).startswith("--checkpoint or --model is needed: ")
    words = ("bench", *QUICK, "--checkpoint", tiny_checkpoint)
    assert the_error(cli(*words, "--batch-size", 4, 0)) == "--batch-size must be at least 1, not 0."
    assert the_error(cli(*words, "--repeats", 0)).startswith("--repeats must be at least 1")
    assert "--against nowhere.pth" in the_error(cli(*words, "--against", "nowhere.pth"))
    Path("text.pth").write_text("not a checkpoint")
    assert "--against text.pth" in the_error(cli(*words, "--against", "text.pth"))
    np.save("mask.npy", np.zeros((2, 3, 5, 5), dtype=bool))
    assert "[2, 3, 17, 17]" in the_error(cli(*words, "--mask", "mask.npy"))
    save_model("headless.safetensors", build_model(tiny_config.changed(num_classes=0)), {})
    assert "--no-training" in the_error(cli(*words, "--against", "headless.safetensors"))
    assert bench(cli, "--checkpoint", "headless.safetensors", "--no-training", "--batch-size", 1)["measurements"]


def test_ctrl_c(cli: Cli, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vitcod_cli.bench.measure, "time_interleaved", interrupted)
    outcome = cli("bench", *QUICK, "--checkpoint", tiny_checkpoint)
    assert outcome.code == 130
    assert outcome.out == ""
    assert outcome.err.endswith("Interrupted.\n")


def test_compiled(cli: Cli, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []

    def compile(self: torch.nn.Module) -> None:
        compiled.append(self)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    words = (
        "--checkpoint",
        tiny_checkpoint,
        "--against",
        "timm",
        "--batch-size",
        1,
        2,
        "--no-training",
        "--compile",
    )
    assert bench(cli, *words)["environment"]["compile"] is True
    assert len(compiled) == 2
    assert len({id(model) for model in compiled}) == 2


def test_the_module_loads_no_torch() -> None:
    code = "import sys; import vitcod_cli.commands.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_names_of_files_are_made_visible(cli: Cli, sparse_checkpoint: Path) -> None:
    evil = Path("\x1b[31m\nError: forged.safetensors")
    sparse_checkpoint.rename(evil)
    outcome = cli("bench", *QUICK, "--checkpoint", evil, "--batch-size", 1)
    assert outcome.code == 0, outcome.err
    assert "\\x1b[31m\\nError:" in outcome.out
    assert "\x1b" not in outcome.out
    assert not [line for line in outcome.out.splitlines() if line.startswith(("Error", "forged"))]


def test_attention_by_tiles(cli: Cli, sparse_checkpoint: Path) -> None:
    model: tuple[object, ...] = ("--checkpoint", sparse_checkpoint, "--no-training", "--batch-size", 2)
    found = bench(cli, *model, "--attention", "flex")
    assert found["environment"]["attention"] == "flex"
    assert [one["model"] for one in found["measurements"]] == ["model", "no mask"]
    words = ("bench", *QUICK, *model, "--attention", "measured")
    assert "measured attention" in cli(*words).out
    for flag in ("--compile", "--deterministic"):
        error = the_error(cli(*words, flag))
        assert f"--attention measured chooses while the model runs, which {flag} rules out" in error


def test_attention_by_tiles_needs_a_mask(cli: Cli) -> None:
    error = the_error(cli("bench", *TINY_MODEL, *QUICK, "--attention", "flex"))
    assert error.startswith("--attention flex leaves out what a mask prunes, and there is no mask")
