"""Sensitivity of blocks and heads: against masks of the whole model and KL from its definition."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Literal

import numpy as np
import pytest
import torch
from command_line import Cli, MakeMap
from model.small_models import KINDS, config_of, random_keep, random_model
from timm.models.vision_transformer import VisionTransformer

from vitcod_cli.artifacts.attention_map import AttentionMap
from vitcod_cli.attention.sensitivity import Sensitivity, measure_sensitivity
from vitcod_cli.attention.sensitivity_report import SensitivityReport
from vitcod_cli.data.calibration import CalibrationImages
from vitcod_cli.data.preprocess import Preprocess
from vitcod_cli.errors import VitcodError
from vitcod_cli.masks.allocate import allocated_mask
from vitcod_cli.masks.info import info_mask_of_sparsity
from vitcod_cli.masks.partial import PartialMask, partial_masks
from vitcod_cli.masks.prefix import keep_prefix
from vitcod_cli.model.layers import attention_shape, clear_keep_mask, keep_mask, set_keep_mask
from vitcod_cli.model.load import save_model
from vitcod_cli.model.passes import answer_of, block_passes, tokens_of
from vitcod_cli.reporting import SilentReporter
from vitcod_cli.runtime import Runtime, RuntimeSettings

CPU = Runtime(RuntimeSettings(), torch.device("cpu"), torch.float32)
PREPROCESS = Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
WORDS = ("sensitivity", "--workers", 0, "--device", "cpu", "--batch-size", 4, "--map-images", 6, "--checkpoint")


def pictures(count: int = 7) -> CalibrationImages:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return CalibrationImages(pixels, PREPROCESS, torch.device("cpu"), count)


def map_of(model: VisionTransformer) -> AttentionMap:
    """Any map with any importance."""
    generator, shape = np.random.default_rng(0), attention_shape(model)
    attention = generator.dirichlet(np.full(shape[-1], 0.5), size=shape[:-1]).astype(np.float32)
    importance = generator.permutation(np.prod(shape)).reshape(shape) / np.float32(np.prod(shape))
    info = {"num_prefix_tokens": model.num_prefix_tokens}
    return AttentionMap(attention, 3, info, importance.astype(np.float32))


def measured(
    model: VisionTransformer,
    sparsities: list[float],
    per: Literal["block", "head"] = "block",
    method: Literal["info", "allocated"] = "allocated",
) -> tuple[list[PartialMask], list[Sensitivity]]:
    reporter = SilentReporter()
    masks = partial_masks(map_of(model), sparsities, method=method, per=per, reporter=reporter)
    assert not reporter.warnings
    return masks, measure_sensitivity(model, pictures(), masks, CPU, reporter, batch_size=3)


@torch.no_grad()
def answers(model: VisionTransformer) -> np.ndarray:
    result: np.ndarray = model(pictures().tensor(slice(None))).double().numpy()
    return result


def divergences(dense: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """KL(p || p') of each image, in nats."""
    p, other = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (dense, pruned))
    result: np.ndarray = (p * np.log(p / other)).sum(axis=1)
    return result


def whole_mask(model: VisionTransformer, mask: PartialMask) -> torch.Tensor:
    """Of the whole model: all is kept but in that part."""
    keep = torch.ones(attention_shape(model), dtype=torch.bool)
    heads = slice(None) if mask.head is None else slice(mask.head, mask.head + 1)
    keep[mask.block, heads] = torch.from_numpy(mask.part_keep)
    return keep


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_in_two_parts(kind: str) -> None:
    model = random_model(config_of(kind))
    images = pictures(2).tensor(slice(None))
    with torch.no_grad():
        tokens = tokens_of(model, images)
        torch.testing.assert_close(answer_of(model, block_passes(model)[0](tokens), 1), model(images))


@pytest.mark.parametrize("per", ["block", "head"])
@pytest.mark.parametrize("kind", ["class token", "distilled", "pooled, no class token", "parallel blocks"])
def test_it_is_the_divergence_of_the_masked_model(kind: str, per: Literal["block", "head"]) -> None:
    model = random_model(config_of(kind))
    masks, found = measured(model, [0.4, 0.7], per)
    layers, heads = attention_shape(model)[:2]
    assert len(found) == 2 * layers * (heads if per == "head" else 1)
    dense, changes = answers(model), []
    for mask, one in zip(masks, found, strict=True):
        set_keep_mask(model, whole_mask(model, mask))
        after = answers(model)
        kl = divergences(dense, after)
        changes.append(kl.mean())
        assert one.change == pytest.approx(kl.mean(), rel=1e-3, abs=1e-7)
        assert one.standard_error == pytest.approx(kl.std(ddof=1) / 7**0.5, rel=1e-3, abs=1e-7)
        assert one.agreement == pytest.approx(100 * (dense.argmax(1) == after.argmax(1)).mean())
        assert (one.block, one.head, one.target, one.images) == (mask.block, mask.head, mask.target, 7)
    assert max(changes) > 1e-3


@pytest.mark.parametrize("per", ["block", "head"])
def test_where_nothing_is_pruned_nothing_changes(per: Literal["block", "head"]) -> None:
    model = random_model(config_of("class token"))
    for one in measured(model, [0.0], per)[1]:
        assert (one.change, one.standard_error, one.agreement, one.sparsity) == (0, 0, 100, 0)


def test_of_features_it_is_their_relative_change() -> None:
    model = random_model(config_of("class token", num_classes=0))
    masks, found = measured(model, [0.6])
    dense = answers(model)
    for mask, one in zip(masks, found, strict=True):
        set_keep_mask(model, whole_mask(model, mask))
        error = np.linalg.norm(answers(model) - dense, axis=1) / np.linalg.norm(dense, axis=1)
        clear_keep_mask(model)
        assert one.change == pytest.approx(error.mean(), rel=1e-3)
        assert one.agreement is None
    report = SensitivityReport(found, per_head=False, choosing=False, about={})
    assert "relative_error" in report.rows()[0]
    assert "agreement" not in report.rows()[0]
    assert "distance of the features" in " ".join(report.lines())


def test_features_by_the_command(cli: Cli, image_folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "features.safetensors", random_model(config_of("class token", num_classes=0)), {})
    words = (*WORDS, "features.safetensors", "--data-path", image_folder, "--sparsities", 0.6, "--plot", "f.png")
    outcome = cli(*words, "--output", "f.csv")
    assert outcome.code == 0, outcome.err
    assert Path("f.csv").read_text().startswith("block,target,sparsity,relative_error,standard_error,images\n")
    assert Path("f.png").exists()


def test_values_that_are_not_finite_are_told_of() -> None:
    model = random_model(config_of("class token"))
    model.head.bias.data[0] = torch.nan
    with pytest.raises(VitcodError, match="pruned block 0 is not finite"):
        measured(model, [0.5])


def test_the_model_is_left_as_it_was() -> None:
    model = random_model(config_of("class token")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured(model, [0.5], "head")
    assert model.training
    assert keep_mask(model) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masks_are_those_of_gen_mask_on_one_part() -> None:
    model = random_model(config_of("registers"))
    given, prefix = map_of(model), model.num_prefix_tokens
    assert given.importance is not None
    by_block = partial_masks(given, [0.5], method="info", per="block", reporter=SilentReporter())
    expected, _ = info_mask_of_sparsity(given.attention[1:2], 0.5, prefix)
    np.testing.assert_array_equal(by_block[1].part_keep, keep_prefix(expected, prefix)[0])
    by_head = partial_masks(given, [0.4, 0.55], method="allocated", per="head", reporter=SilentReporter())
    last = by_head[-1]
    assert (last.block, last.head, last.target) == (1, 2, 0.55)
    np.testing.assert_array_equal(last.part_keep, allocated_mask(given.importance[1:2, 2:3], 0.55, prefix)[0])
    assert last.sparsity == pytest.approx(0.55, abs=1 / last.part_keep.size)
    whole = last.keep(3)
    assert whole[:2].all()
    np.testing.assert_array_equal(whole[2], last.part_keep[0])


def test_what_cannot_be_pruned_is_left_out() -> None:
    """17 tokens: a key of every row and the class token leave 83 % at most."""
    model, reporter = random_model(config_of("class token")), SilentReporter()
    found = partial_masks(map_of(model), [0.5, 0.9], method="allocated", per="block", reporter=reporter)
    assert [(mask.block, mask.target) for mask in found] == [(0, 0.5), (1, 0.5)]
    assert "2 of 4 masks are left out. Block 0: --sparsity 0.9 can't be reached" in reporter.warnings[0]
    with pytest.raises(VitcodError, match="No part of the model can be pruned like that"):
        partial_masks(map_of(model), [0.9], method="allocated", per="block", reporter=reporter)


def test_tables_of_many_sparsities_fit_the_terminal() -> None:
    rows = [
        Sensitivity(b, h, t / 20, t / 20, 10.0**b, 0, 50, 3) for b in range(4) for h in (0, 1) for t in range(19)
    ]
    lines = SensitivityReport(rows, per_head=True, choosing=True, about={}).lines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert [f"{100 * t / 20:g} %" in text for t in range(19)] == [True] * 19
    assert sum(line.startswith("    3     1") for line in lines) == 3
    assert "block 3 head 0 (1e+03)" in " ".join(lines)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, random_model(config_of("class token")), {})
    return path


def test_the_command(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    words = (*WORDS, checkpoint, "--data-path", image_folder, "--sparsities", 0.75, 0.5)
    outcome = cli(*words, "--output", "s.csv", "--plot", "s.png")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["block", "50", "%", "75", "%"]
    assert all(len(line) <= 80 for line in lines)
    assert "on 13 held-out images" in " ".join(outcome.out.split())
    with open("s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["block"], row["target"]) for row in rows] == [
        ("0", "0.5"),
        ("0", "0.75"),
        ("1", "0.5"),
        ("1", "0.75"),
    ]
    assert f"{float(rows[0]['kl']):.4f}" == lines[2].split()[1]
    assert Path("s.png").read_bytes()[:4] == b"\x89PNG"
    by_head = json.loads(cli(*words, "--per", "head", "--method", "info", "--images", 5, "--json").out)
    assert (by_head["measure"], by_head["per"], by_head["method"]) == ("kl", "head", "info")
    assert [(row["block"], row["head"]) for row in by_head["rows"][::2]] == [
        (b, h) for b in (0, 1) for h in range(3)
    ]
    assert {row["images"] for row in by_head["rows"]} == {5}
    cli(*words, "--per", "head", "--output", "h.json", "--plot", "h.svg")
    assert json.loads(Path("h.json").read_text())[0]["head"] == 0
    assert Path("h.svg").read_text().lstrip().startswith("<?xml")


def test_a_map_of_dump_attn_takes_the_place_of_training_images(
    cli: Cli, checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Measured on the same images it is the same map, and then no training images are read."""
    data = ("--data-path", image_folder)
    dump = ("dump-attn", "--workers", 0, "--checkpoint", checkpoint, *data, "--importance-images", 20)
    assert cli(*dump).code == 0
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout/val").symlink_to(image_folder / "val")
    words = ("sensitivity", "--workers", 0, "--checkpoint", checkpoint, "--sparsities", 0.6, "--json")
    ours = json.loads(cli(*words, *data, "--map-images", 20).out)
    outcome = cli(*words, "--data-path", "heldout", "--attn-map", "attn.safetensors")
    theirs = json.loads(outcome.out)
    assert theirs["map_images"] == 20
    for one, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert one["kl"] == pytest.approx(other["kl"], rel=0.2)


def test_a_folder_without_labels(cli: Cli, checkpoint: Path, image_folder: Path) -> None:
    """One folder for both splits: every fifth image is held out."""
    words = (*WORDS, checkpoint, "--data-path", image_folder / "train", "--sparsities", 0.5, "--json")
    for more in (("--dataset", "images"), ()):
        outcome = cli(*words, *more)
        assert json.loads(outcome.out)["rows"][0]["images"] == 4
    assert outcome.err.count("every fifth of its images is kept to judge by") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sparsities", 1), "--sparsities must be above 0 and below 1"),
        (("--sparsities", 0.5, 0.5), "--sparsities names the same one twice"),
        (("--output", "s.txt"), "--output s.txt should end in .csv or .json"),
        (("--plot", "s.csv"), "--plot s.csv should end in .png, .pdf or .svg"),
        (("--attn-map", "gone.npy"), "--map-images are those of a map that is measured here"),
        (("--sparsities", 0.95), "No part of the model can be pruned like that"),
    ],
)
def test_what_is_refused(
    cli: Cli, checkpoint: Path, image_folder: Path, words: tuple[object, ...], message: str
) -> None:
    before = set(Path().iterdir())
    assert message in cli(*WORDS, checkpoint, "--data-path", image_folder, *words).error
    assert set(Path().iterdir()) == before


def test_what_belongs_to_another_model_is_refused(
    cli: Cli, checkpoint: Path, image_folder: Path, make_map: MakeMap, tmp_path: Path
) -> None:
    words = ("sensitivity", "--workers", 0, "--data-path", image_folder, "--sparsities", 0.5, "--output", "s.csv")
    np.save("other.npy", make_map(3, 2))
    np.save("plain.npy", make_map(2, 3))
    run = (*words, "--checkpoint", checkpoint, "--attn-map")
    assert "has the shape [3, 2, 17, 17], and the model needs [2, 3, 17, 17]" in cli(*run, "other.npy").error
    assert "take --method info" in cli(*run, "plain.npy").error
    assert cli(*run, "plain.npy", "--method", "info").code == 0
    assert "s.csv exists; replace it with --overwrite" in cli(*run, "plain.npy", "--method", "info").error
    model = random_model(config_of("class token"))
    set_keep_mask(model, random_keep(model))
    save_model(tmp_path / "sparse.safetensors", model, {})
    error = cli(*words, "--overwrite", "--checkpoint", tmp_path / "sparse.safetensors").error
    assert "has a mask already" in error


def test_two_processes_measure_the_same(
    run_cli: Callable[..., CompletedProcess[str]], cli: Cli, checkpoint: Path, image_folder: Path
) -> None:
    """Attention is averaged over both; the images are the same, and each counts once."""
    words: tuple[Any, ...] = (*WORDS, checkpoint, "--data-path", image_folder, "--sparsities", 0.6)
    words += ("--method", "info", "--json")
    one = json.loads(cli(*words).out)
    result = run_cli(*words, "--nproc-per-node", 2, timeout=300)
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)
    for first, second in zip(one["rows"], two["rows"], strict=True):
        assert second["images"] == first["images"] == 13
        assert second["kl"] == pytest.approx(first["kl"], rel=1e-3)
