"""``compress`` and ``sweep`` of a model without a head: its features beside the dense model's, wherever shown."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Cli

import vitcod_cli
from vitcod_cli.artifacts.model_config import ModelConfig
from vitcod_cli.model.build import build_model
from vitcod_cli.model.layers import keep_mask
from vitcod_cli.model.load import save_model
from vitcod_cli.reporting import SilentReporter

QUICK = ("--calibrate-steps", 10, "--calibrate-images", 12, "--calibrate-batch-size", 4, "--workers", 0)
FIGURES = ("cosine", "cosine_p5", "relative_error")


@pytest.fixture
def dense(tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build_model(tiny_config.changed(num_classes=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    save_model("backbone.safetensors", model, {})
    return "backbone.safetensors"


def figures_of(line: str) -> list[str]:
    """The cells of a line of a table."""
    return re.split(r"\s{2,}", line.strip())


def test_compress(cli: Cli, image_folder: Path, dense: str) -> None:
    words = ("compress", "--init-from", dense, "--data-path", image_folder, *QUICK, "--align-steps", 2)
    outcome = cli(*words, "--sparsity", 0.6, "--output-dir", "out")
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("out/compress.json").read_text())
    rows = record["results"]
    assert [row["name"] for row in rows] == ["dense", "low-rank", "allocated_0.60"]
    assert [rows[0][name] for name in FIGURES] == pytest.approx([1, 1, 0])
    assert rows[2]["sparsity"] == pytest.approx(0.6, abs=0.01)
    for row in rows:
        assert row["relative_error_low"] <= row["relative_error"] <= row["relative_error_high"]
        assert row["images"] == 13
        assert not {"acc1", "loss", "agreement", "difference"} & row.keys()
    # The table says what the record does, and nothing of accuracy.
    lines = outcome.out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("  vitcod")) <= 80
    table = {cells[0]: cells[1:] for cells in map(figures_of, lines) if len(cells) == 4}
    assert table["cosine with dense"] == [f"{row['cosine']:.4f}" for row in rows]
    assert table["worst twentieth"] == [f"{row['cosine_p5']:.4f}" for row in rows]
    assert table["error to dense"] == [f"{row['relative_error']:.1%}" for row in rows]
    for text in (outcome.out, outcome.err, json.dumps(record)):
        assert "Acc@" not in text
        assert "NaN" not in text
    # The figures are those of eval, by the very command that is shown.
    [command] = [command for command in record["model"]["next"] if " eval " in command]
    assert "--against out/dense.safetensors" in command
    evaluated = cli(*command.split()[1:], "--json")
    assert evaluated.code == 0, evaluated.err
    model = json.loads(evaluated.out)["models"][1]
    assert {name: model[name] for name in FIGURES} == pytest.approx({name: rows[2][name] for name in FIGURES})
    # The card beside it.
    card = Path("out/README.md").read_text()
    assert "without a head" in card
    assert f"mean | {rows[2]['cosine']:.3f} |" in card
    assert "features = model(" in card
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "image-feature-extraction"
    assert "no head, images of 32x32" in " ".join(cli("inspect", "out/model.safetensors").out.split())


def test_the_page_of_a_model_and_of_its_runs(cli: Cli, image_folder: Path, dense: str) -> None:
    words = ("compress", "--init-from", dense, "--data-path", image_folder, *QUICK, "--svd-type", "none")
    assert cli(*words, "--sparsity", 0.6, "--output-dir", "out").code == 0
    final = json.loads(Path("out/compress.json").read_text())["results"][-1]
    shutil.copytree("out/allocated_0.60", "runs/allocated_0.60")
    for folder in ("out", "runs"):
        assert cli("report", folder, "--output", f"{folder}.html").code == 0
        body = Path(f"{folder}.html").read_text(encoding="utf-8").partition("Terms")[0]
        text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", body, flags=re.S)
        assert f"{final['cosine']:.4f}" in text, folder
        assert f"{final['relative_error']:.1%}" in text, folder
        assert "Acc@1" not in text, folder
        assert "agreement" not in text, folder


def test_sweep(cli: Cli, image_folder: Path, dense: str, tmp_path: Path) -> None:
    """Of pictures in one folder."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(image_folder.glob("*/*/*.jpg"))):
        shutil.copy(path, flat / f"{number}.jpg")
    words = ("sweep", "--init-from", dense, "--data-path", flat, *QUICK, "--sparsities", 0.3, 0.8, "--output-dir")
    outcome = cli(*words, "out")
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("out/sweep.json").read_text())
    rows = record["results"]
    assert [row["name"] for row in rows] == [
        *("dense", "allocated_0.30", "allocated_0.80", "info_0.30", "info_0.80")
    ]
    assert max(map(len, outcome.out.splitlines())) <= 80
    for row in rows:
        [line] = [line for line in outcome.out.splitlines() if line.startswith(f"{row['name']} ")]
        shown = [f"{row['sparsity']:.1%}", f"{row['cosine']:.4f}", f"{row['cosine_p5']:.4f}"]
        assert figures_of(line)[1:5] == [*shown, f"{row['relative_error']:.1%}"]
    with open("out/sweep.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["relative_error"]) for line in table] == [row["relative_error"] for row in rows]
    assert not {"acc1", "agreement", "points"} & table[0].keys()
    assert Path("out/features.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("out/features.pdf").read_bytes()[:5] == b"%PDF-"
    assert "features.png, features.pdf" in outcome.out
    # Gone on with: nothing is made anew.
    again = cli(*words, "out", "--resume")
    assert (again.code, again.out) == (0, outcome.out), again.err
    # Its page has the two curves and says how sparse it may become.
    assert cli("report", "out").code == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "Error of the features over sparsity" in page
    assert "Cosine with dense" in page
    assert "sparsity for an error of 10%" in page
    assert "Acc@1" not in page.partition("Terms")[0]


def test_two_processes_score_as_one(run_cli: Any, image_folder: Path, dense: str) -> None:
    """Without a calibration, whose steps see other images, the masks and the figures are the same."""
    words = ("sweep", "--init-from", dense, "--data-path", image_folder, "--calibrate-steps", 0, "--workers", 0)
    rows = []
    for count in (1, 2):
        out = f"out{count}"
        more = ("--methods", "info", "--sparsities", 0.6, "--output-dir", out, "--nproc-per-node", count)
        done = run_cli(*words, *more, "--json")
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout)["results"])
    for one, two in zip(*rows, strict=True):
        for name in (*FIGURES, "relative_error_low", "relative_error_high", "images"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-9), name


def test_compress_from_python(image_folder: Path, dense: str) -> None:
    model = vitcod_cli.load(dense)
    settings = vitcod_cli.DataSettings(data_path=str(image_folder), workers=0)
    small = vitcod_cli.compress(model, image_folder, sparsity=0.5, num_images=12, reporter=SilentReporter())
    keep = keep_mask(small)
    assert keep is not None
    assert 1 - float(keep.float().mean()) == pytest.approx(0.5, abs=0.01)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert small(images).shape == model(images).shape == (3, 24)
    vitcod_cli.save(small, "small.safetensors")
    options = vitcod_cli.EvalOptions(checkpoint=["small.safetensors"], against=dense, data=settings)
    found = vitcod_cli.evaluate_models(options).to_dict()["models"]
    assert 0 < found[1]["relative_error"] < 1
