"""Models judged by their features: pooled ones, patch tokens, neighbours, against plain definitions."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Cli
from numpy.typing import NDArray
from rich.cells import cell_len

from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.data.datasets import open_dataset
from vitcod_cli.data.loaders import eval_loader
from vitcod_cli.data.settings import DataSettings
from vitcod_cli.evaluation import neighbours
from vitcod_cli.evaluation.feature_comparison import FeatureComparison
from vitcod_cli.evaluation.features import Nearness
from vitcod_cli.evaluation.features_report import FeatureModel, FeaturesReport
from vitcod_cli.evaluation.neighbours import NeighbourAgreement, compare_neighbours
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import attention_shape, set_keep_mask
from vitcod_cli.model.load import load_model, save_model
from vitcod_cli.model.preprocessing import preprocess_of
from vitcod_cli.model.settings import ModelSettings
from vitcod_cli.reporting import QUIET

FIGURES = ("cosine", "relative_error", "patch_cosine", "patch_error", "same_nearest", "neighbour_overlap")
CPU = torch.device("cpu")


def save(config: ModelConfig, path: Path, *, seed: int = 0, sparse: bool = False) -> str:
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
    return str(path)


@pytest.fixture
def registers(tiny_config: ModelConfig) -> ModelConfig:
    """With a head and three prefix tokens: the class token and two registers."""
    return tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "reg_tokens": 2})


@pytest.fixture
def pair(registers: ModelConfig, tmp_path: Path) -> list[str]:
    """A dense model and the same under a mask, whose head has other classes."""
    sparse = registers.changed(num_classes=7)
    return [
        save(registers, tmp_path / "dense.safetensors"),
        save(sparse, tmp_path / "sparse.safetensors", sparse=True),
    ]


def evaluated(cli: Cli, images: Path, *words: object) -> list[dict[str, Any]]:
    outcome = cli("eval", *words, "--data-path", images, "--workers", 0, "--json")
    assert outcome.code == 0, outcome.err
    models: list[dict[str, Any]] = json.loads(outcome.out)["models"]
    return models


def plain_features(path: str, images: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pooled [images, C] and patch tokens [images, P, C], of timm's own parts of the model."""
    model = load_model(ModelSettings(), path, flag="", reporter=QUIET).eval()
    data = open_dataset(DataSettings(data_path=str(images)), "val", num_classes=0, reporter=QUIET)
    loader = eval_loader(data, preprocess_of(model), batch_size=99, workers=0, device=CPU, reporter=QUIET)
    [(batch, _)] = loader
    with torch.no_grad():
        tokens = model.norm(model.blocks(model._pos_embed(model.patch_embed(batch))))
    return tokens[:, 0].double().numpy(), tokens[:, 3:].double().numpy()


def cosine_and_error(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    lengths = [np.linalg.norm(each, axis=-1) for each in (one, other)]
    cosine = (one * other).sum(axis=-1) / (lengths[0] * lengths[1])
    error = np.linalg.norm(one - other, axis=-1) / lengths[1]
    return float(cosine.mean()), float(error.mean())


def plain_neighbours(pooled: NDArray[np.float64]) -> NDArray[np.intp]:
    """[images, images - 1], the nearest first."""
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    return np.argsort(-similarity, axis=1)[:, :-1]


def plain_agreement(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    count = min(5, len(one) - 1)
    ours, theirs = plain_neighbours(one)[:, :count], plain_neighbours(other)[:, :count]
    common = [len({*a} & {*b}) / count for a, b in zip(ours, theirs, strict=True)]
    return float((ours[:, 0] == theirs[:, 0]).mean()), float(np.mean(common))


def test_every_figure_is_that_of_its_definition(cli: Cli, image_folder: Path, pair: list[str]) -> None:
    """Of models with heads, whatever their classes."""
    first, second = evaluated(cli, image_folder, "--checkpoint", *pair, "--features")
    (pooled, patches), (own_pooled, own_patches) = (plain_features(path, image_folder) for path in pair)
    assert patches.shape == (13, 16, 24)
    known = (
        *cosine_and_error(own_pooled, pooled),
        *cosine_and_error(own_patches, patches),
        *plain_agreement(own_pooled, pooled),
    )
    assert [second[name] for name in FIGURES] == pytest.approx(known, rel=1e-4)
    assert [first[name] for name in FIGURES] == pytest.approx((1, 0, 1, 0, 1, 1), abs=1e-6)
    assert 0 < second["neighbour_overlap"] < 1
    assert second["images"] == 13
    assert not {"acc1", "agreement", "loss"} & second.keys()


def test_a_head_changes_nothing(cli: Cli, image_folder: Path, pair: list[str], registers: ModelConfig) -> None:
    """The same backbones without heads are judged so by themselves."""
    with_heads = evaluated(cli, image_folder, "--checkpoint", pair[1], "--against", pair[0], "--features")
    without = evaluated(cli, image_folder, "--checkpoint", pair[1], "--against", pair[0], "--num-classes", 0)
    for one, other in zip(with_heads, without, strict=True):
        assert [other[name] for name in FIGURES] == pytest.approx([one[name] for name in FIGURES], rel=1e-6)


def test_two_processes_find_what_one_does(run_cli: Any, image_folder: Path, pair: list[str]) -> None:
    words = ("eval", "--checkpoint", *pair, "--features", "--data-path", image_folder, "--workers", 0, "--json")
    found = []
    for more in (("--batch-size", 2), ("--nproc-per-node", 2)):
        done = run_cli(*words, *more)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["models"][1])
    for other in found[1:]:
        assert [other[name] for name in FIGURES] == pytest.approx([found[0][name] for name in FIGURES], rel=1e-5)
        assert other["images"] == 13


@pytest.mark.parametrize("images", [2, 3, 6, 40])
def test_neighbours_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """However few rows of it are computed at a time."""
    monkeypatch.setattr(neighbours, "_MOST_SIMILARITIES", 3 * images)
    generator = torch.Generator().manual_seed(images)
    one = torch.randn(images, 8, generator=generator)
    other = one + 0.5 * torch.randn(images, 8, generator=generator)
    scaled = one * torch.rand(images, 1, generator=generator)  # a cosine doesn't see lengths
    same, scale, changed = compare_neighbours([one, scaled, other], CPU)
    assert same == scale == NeighbourAgreement(1.0, 1.0)
    assert changed is not None
    known = plain_agreement(other.double().numpy(), one.double().numpy())
    assert (changed.same_nearest, changed.overlap) == pytest.approx(known)


@pytest.mark.parametrize("images", [0, 1])
def test_a_single_image_has_no_neighbours(images: int) -> None:
    features = torch.ones(images, 4)
    assert compare_neighbours([features, features], CPU) == [None, None]


def test_other_patches_are_not_compared(
    cli: Cli, image_folder: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    coarse = tiny_config.changed(model_kwargs={**tiny_config.model_kwargs, "patch_size": 16})
    paths = [save(config, tmp_path / f"{n}.safetensors") for n, config in enumerate((tiny_config, coarse))]
    first, second = evaluated(cli, image_folder, "--checkpoint", *paths, "--features")
    assert first["patch_cosine"] == pytest.approx(1)
    assert (second["patch_cosine"], second["patch_error"]) == (None, None)
    assert second["relative_error"] > 0
    outcome = cli("eval", "--checkpoint", *paths, "--features", "--data-path", image_folder, "--workers", 0)
    row = outcome.out.splitlines()[3]
    assert len(re.findall(r"\d+\.\d+", row)) == 6, row


def test_programs(cli: Cli, image_folder: Path, pair: list[str]) -> None:
    """What gives pooled features has no patches; what gives logits has neither."""
    for name, more in (("logits.pt2", ()), ("features.pt2", ("--num-classes", 0))):
        outcome = cli("export", "--checkpoint", pair[0], "--output", name, *more)
        assert outcome.code == 0, outcome.err
    words = ("--against", pair[0], "--trust-program", "--features")
    _, program = evaluated(cli, image_folder, "--checkpoint", "features.pt2", *words)
    assert (program["cosine"], program["same_nearest"], program["patch_cosine"]) == (pytest.approx(1), 1, None)
    error = cli("eval", "--checkpoint", "logits.pt2", *words, "--data-path", image_folder).error
    assert "--features can't judge the program --checkpoint logits.pt2: it gives logits" in error
    assert "--num-classes 0" in error


def test_features_of_one_model_are_compared_with_nothing(cli: Cli, image_folder: Path) -> None:
    error = cli("eval", "--checkpoint", "missing.safetensors", "--features", "--data-path", image_folder).error
    assert "--features compares the features of models" in error
    assert "--against" in error


def test_other_classes_are_told_of_features(cli: Cli, image_folder: Path, pair: list[str]) -> None:
    error = cli("eval", "--checkpoint", *pair, "--data-path", image_folder).error
    assert "5 classes" in error
    assert "--features compares their features" in error


def test_the_results_file(cli: Cli, image_folder: Path, pair: list[str]) -> None:
    words = ("--checkpoint", *pair, "--features", "--results-file", "r.csv")
    [_, found] = evaluated(cli, image_folder, *words)
    content = Path("r.csv").read_text(encoding="utf-8")
    [_, row] = csv.DictReader(content.splitlines())
    assert [float(row[name]) for name in FIGURES] == pytest.approx([found[name] for name in FIGURES], abs=1e-6)
    # One from before there were patches is no table of these rows.
    old = [line.split(",") for line in content.splitlines()]
    place = old[0].index("patch_cosine")
    Path("r.csv").write_text("".join(",".join([*cells[:place], *cells[place + 4 :]]) + "\n" for cells in old))
    before = Path("r.csv").read_text(encoding="utf-8")
    error = cli("eval", *words, "--data-path", image_folder).error
    assert "--results-file r.csv can't be added to (it has other columns); name another file" in error
    assert Path("r.csv").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("error", [0.0, 99.9])
@pytest.mark.parametrize("patches", [True, False])
@pytest.mark.parametrize("images", [1, 50])
def test_the_table_has_80_columns_at_most(error: float, patches: bool, images: int) -> None:
    nearness = Nearness(np.full(images, -1.0), np.full(images, error))
    agreement = NeighbourAgreement(1.0, 1.0) if images > 1 else None
    comparison = FeatureComparison(nearness, nearness if patches else None, agreement)
    names = ["x" * 200, f"{'y' * 100}1{'y' * 100}", f"{'y' * 100}2{'y' * 100}", "模" * 100]
    models = [FeatureModel(name, {"sparsity": 1.0}, comparison) for name in names]
    lines = FeaturesReport(models, about={}).lines()
    assert max(map(cell_len, lines)) <= 80
    assert len({line.split()[0] for line in lines[2:6]}) == 4
    note = " ".join(lines[7:])
    for word, shown in (("p-error", patches), ("nearest", images > 1)):
        assert (word in lines[0]) is (word in note) is shown
