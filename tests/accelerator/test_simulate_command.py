"""``vitcod simulate`` as users type it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli
from golden_masks import mask_of, small_cases
from PIL import Image

from vitcod_cli.accelerator.estimate import estimate
from vitcod_cli.accelerator.hardware import Hardware, default_yaml
from vitcod_cli.accelerator.run import shape_of
from vitcod_cli.accelerator.workload import Shape
from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.mask import Mask, write_mask
from vitcod_cli.masks.polarize import token_order
from vitcod_cli.model.auto_encoder import compressed_heads

CASE = next(case for case in small_cases() if case["H"] == 3 and not case["runs"][0]["error"])
KEEP = mask_of(CASE)
TOKENS = KEEP.shape[-1]


@pytest.fixture
def mask_file(tmp_path: Path) -> str:
    path = tmp_path / "mask.safetensors"
    write_mask(path, Mask(KEEP, {"method": "info", "sparsity": 0.9, "model_config": {"model": "deit_tiny"}}))
    return str(path)


@pytest.fixture
def map_file(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    attention = random.dirichlet(np.full(17, 0.3), size=(2, 3, 17)).astype(np.float32)
    importance = random.random(attention.shape, dtype=np.float32)
    write_attention_map(
        tmp_path / "map.safetensors", AttentionMap(attention, 5, {"num_prefix_tokens": 1}, importance)
    )
    return str(tmp_path / "map.safetensors")


def test_the_estimate(cli: Cli, mask_file: str) -> None:
    result = json.loads(cli("simulate", mask_file, "--json").out)
    shape = Shape(3, TOKENS, 64, 2)
    found = estimate(KEEP, token_order(KEEP, TOKENS - 1), shape, Hardware())
    assert result["totals"] == found.totals()
    assert result["threshold"] == TOKENS - 1
    assert set(result["baselines"]) == {"dense", "not polarized", "row-packed", "no auto-encoder"}
    out = cli("simulate", mask_file).out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert f"{found.totals()['attention_cycles']:,.0f}" in out
    assert "not the\npaper's factors" in out.replace("They are not the", "not the")


@pytest.mark.parametrize(("ratio", "heads"), [(None, 3), ("0.667", 3), ("0.5", 2), ("0.1", 1), ("1", None)])
def test_heads_behind_the_auto_encoder(ratio: str | None, heads: int | None) -> None:
    """Left out, as many as ``finetune-lowrank`` makes."""
    keep = np.ones((1, 5, 4, 4), dtype=np.bool_)
    assert shape_of(keep, 8, None if ratio is None else float(ratio), 4).compressed_heads == heads
    assert shape_of(keep, 8, None, 4).compressed_heads == compressed_heads(5)


def test_a_polarized_file_says_its_order(cli: Cli, mask_file: str, tmp_path: Path) -> None:
    polarized = str(tmp_path / "p.safetensors")
    cli("polarize", mask_file, "--output", polarized, "--threshold", "1")
    totals = json.loads(cli("simulate", polarized, "--json").out)["totals"]
    assert totals == json.loads(cli("simulate", mask_file, "--threshold", "1", "--json").out)["totals"]
    assert totals != json.loads(cli("simulate", mask_file, "--json").out)["totals"]


def test_the_published_program(cli: Cli, mask_file: str) -> None:
    run = CASE["runs"][0]
    words = ["--model", "published", "--threshold", str(CASE["threshold"])]
    result = json.loads(cli("simulate", mask_file, *words, "--json").out)
    assert result["totals"]["attention"] == run["totals"]["total"]
    assert [block["sparse_spmm"] for block in result["blocks"]] == [
        block["sparse_spmm"] for block in run["per_layer_head0"]
    ]
    out = cli("simulate", mask_file, *words).out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "not the paper's factors" in out
    wide = json.loads(cli("simulate", mask_file, *words, "--pe-width", "128", "--json").out)
    assert wide["totals"]["compute"] < result["totals"]["compute"]
    v1 = json.loads(cli("simulate", mask_file, *words, "--revision", "v1", "--ratio", str(2 / 3), "--json").out)
    expected = next(run for run in CASE["runs"] if run["version"] == "v1" and run["program"] == "attention")
    assert v1["totals"]["attention"] == expected["totals"]["total"]


@pytest.mark.parametrize(("tokens", "queries", "dense"), [(100, 45, 1), (300, 60, 2), (197, 51, 2), (197, 50, 1)])
def test_the_published_threshold_is_50_of_any_number_of_tokens(
    cli: Cli, tmp_path: Path, tokens: int, queries: int, dense: int
) -> None:
    keep = np.eye(tokens, dtype=np.bool_)[None, None].repeat(2, axis=1)
    keep[..., 0] = True
    keep[..., 1] = np.arange(tokens) < queries
    np.save(tmp_path / "mask.npy", ~keep)
    words = ["simulate", str(tmp_path / "mask.npy"), "--model", "published", "--json"]
    found = json.loads(cli(*words).out)
    assert found["blocks"][0]["global_tokens"] == dense
    assert found == json.loads(cli(*words, "--threshold", "50").out)


def test_no_key_of_few_tokens_is_dense_to_the_published_program(cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.zeros((1, 2, 40, 40), dtype=np.bool_))
    error = cli("simulate", str(tmp_path / "mask.npy"), "--model", "published").error
    assert "too few dense keys (0)" in error


def test_the_embedding_of_the_published_program(cli: Cli, mask_file: str) -> None:
    words = ["simulate", mask_file, "--model", "published", "--threshold", str(CASE["threshold"]), "--json"]
    plain, same, wide = (
        json.loads(cli(*words, *more).out) for more in ([], ["--embedding", "192"], ["--embedding", "768"])
    )
    assert plain == same
    assert wide["linear"]["ffn_compute"] == 2 * (4 * TOKENS * 768 * 768 // 512)
    assert wide["blocks"] == plain["blocks"]


def test_where_the_published_program_dies(cli: Cli, mask_file: str) -> None:
    error = cli("simulate", mask_file, "--model", "published", "--threshold", str(TOKENS)).error
    assert "divides by zero: in block 0" in error
    assert cli("simulate", mask_file, "--threshold", str(TOKENS)).code == 0


def test_a_chip_to_copy(cli: Cli, mask_file: str, tmp_path: Path) -> None:
    printed = cli("simulate", "--print-hardware").out
    assert printed == default_yaml()
    path = tmp_path / "chip.yaml"
    path.write_text(printed.replace("lines: 64", "lines: 128"))
    totals = json.loads(cli("simulate", mask_file, "--hardware", str(path), "--json").out)["totals"]
    assert totals["cycles"] < json.loads(cli("simulate", mask_file, "--json").out)["totals"]["cycles"]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_sweep_of_the_chip(cli: Cli, mask_file: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sweep.{suffix}"
    words = [
        "--sweep",
        "lines=32,64",
        "bandwidth=1e9,76.8e9",
        "threshold=auto,20",
        "ratio=1,0.5",
        "--output",
        str(path),
    ]
    out = cli("simulate", mask_file, *words)
    assert len(out.out.splitlines()) == 17
    rows = list(csv.DictReader(path.open())) if suffix == "csv" else json.loads(path.read_text())
    assert len(rows) == 16
    assert [row["lines"] for row in rows] == ["32"] * 8 + ["64"] * 8
    one = rows[-1]
    found = estimate(KEEP, token_order(KEEP, 20), Shape(3, TOKENS, 64, 2), Hardware())
    assert float(one["cycles"]) == found.cycles
    assert len(json.loads(cli("simulate", mask_file, *words, "--overwrite", "--json").out)["rows"]) == 16


@pytest.mark.parametrize(
    "words",
    [
        ["lines=32,64"],
        ["lines=64", "bandwidth=76.8e9", "threshold=auto", "ratio=1"],
        ["lines=32,64", "groups=8,16", "sparse_efficiency=1,0.5", "macs_per_line=8", "bits=8", "ratio=1,0.667"],
        ["clock=500000000", f"bandwidth=76800000000.{'0' * 100}"],
    ],
)
def test_a_sweep_of_whatever_fits_80_columns(cli: Cli, mask_file: str, words: list[str]) -> None:
    out = cli("simulate", mask_file, "--sweep", *words).out
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = json.loads(cli("simulate", mask_file, "--sweep", *words, "--json").out)["rows"]
    for row in rows:
        assert f"{row['attention_seconds'] * 1e6:,.1f}" in out
    for name, _, values in (word.partition("=") for word in words):
        assert name in out
        assert all(value in out.replace("\n", "") for value in values.split(","))


def test_a_sweep_of_sparsities(cli: Cli, map_file: str) -> None:
    words = ["simulate", map_file, "--sweep", "sparsity=0.5,0.6,0.8", "method=info,allocated", "--json"]
    rows = json.loads(cli(*words).out)["rows"]
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        (method, sparsity) for method in ("info", "allocated") for sparsity in (0.5, 0.6, 0.8)
    ]
    for method in (rows[:3], rows[3:]):
        assert method[0]["attention_macs"] > method[1]["attention_macs"] > method[2]["attention_macs"]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_a_picture(cli: Cli, mask_file: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    cli("simulate", mask_file, "--plot", str(path))
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])
    if suffix == "png":
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(10**7) or []) > 100


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "MASK is needed"),
        (["none.safetensors"], "does not exist"),
        (["{mask}", "--revision", "v1"], "--model published"),
        (["{mask}", "--pe-width", "32"], "lines and macs_per_line in --hardware"),
        (["{mask}", "--model", "published", "--sweep", "lines=1"], "--sweep goes with the estimate"),
        (["{mask}", "--model", "published", "--hardware", "x"], "--hardware goes with the estimate"),
        (["{mask}", "--model", "published", "--plot", "x.png"], "--plot goes with the estimate"),
        (["{mask}", "--embedding", "192"], "--embedding is one of the published program"),
        (["{mask}", "--model", "published", "--mlp-ratio", "2"], "--mlp-ratio goes with the estimate"),
        (["{mask}", "--output", "x.csv"], "--output is the file of a --sweep"),
        (["{mask}", "--sweep", "lines=8", "--output", "x.txt"], "should end in .csv or .json"),
        (["{mask}", "--plot", "x.gif"], "should end in .png, .pdf or .svg"),
        (["{mask}", "--plot", "x.png", "--sweep", "lines=8"], "--plot draws one mask"),
        (["{mask}", "--sweep", "line=8"], "did you mean lines"),
        (["{mask}", "--sweep", "lines="], "has no values"),
        (["{mask}", "--sweep", "lines"], "has no values"),
        (["{mask}", "--sweep", "lines=8,,16"], "has no values"),
        (["{mask}", "--sweep", "lines=0"], "--sweep: lines must be at least 1, not 0"),
        (["{mask}", "--sweep", "lines=63"], "--sweep: 63 lines can't be divided into 8 groups"),
        (["{mask}", "--sweep", "lines=x"], "--sweep: lines 'x' is not a whole number"),
        (["{mask}", "--sweep", "lines=8", "lines=16"], "given twice"),
        (["{mask}", "--sweep", "ratio=2"], "--ratio must be"),
        (["{mask}", "--sweep", "threshold=x"], "--threshold 'x'"),
        (["{mask}", "--sweep", "method=info"], "add sparsity"),
        (["{mask}", "--sweep", "sparsity=0.5"], "is not a vitcod attention map"),
        (["{mask}", "--sweep", "sparsity=x"], "'x' is not a number"),
        (["{mask}", "--sweep", "sparsity=1.5"], "--sparsity must be"),
        (["{mask}", "--sweep", "sparsity=0.5", "method=best"], "'best' is none of info and allocated"),
        (["{map}"], "is not a vitcod mask"),
        (["{mask}", "--threshold", "1000000"], "is more than the"),
        (["{mask}", "--head-dim", "0"], "--head-dim must be"),
    ],
)
def test_what_simulate_refuses(
    cli: Cli,
    mask_file: str,
    map_file: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    says: str,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert says in cli("simulate", *(word.format(mask=mask_file, map=map_file) for word in words)).error
    assert not list((tmp_path / "here").iterdir())
