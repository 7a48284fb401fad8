"""``vitcod report``: every figure is on the page, nothing on it came in as markup, and it needs no network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli

from vitcod_cli.artifacts.attention_map import AttentionMap, write_attention_map
from vitcod_cli.artifacts.mask import Mask, write_mask
from vitcod_cli.report.charts import Point, Series, line_chart
from vitcod_cli.report.html import Html, element

HOSTILE = '</script><img src="http://evil.example/x" onerror=alert(1)>\x1b[31m\u202e'


class Page(HTMLParser):
    """The texts and the tags of a page; fails where tags don't match."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def row(name: str, method: str | None, sparsity: float, acc1: float, **more: Any) -> dict[str, Any]:
    difference = {"points": acc1 - 77.25, "low": acc1 - 79.5, "high": acc1 - 75.5, "p": 0.01}
    return {
        **{"name": name, "method": method, "sparsity": sparsity, "acc1": acc1, "acc5": 93.5, "loss": 1.25},
        **{"acc1_low": acc1 - 3, "acc1_high": acc1 + 3, "images": 500, "agreement": 88.5, "kl": 0.1},
        **{"attention_macs": 178_831_872, "macs": 1_253_683_200, "bytes": 22_883_824, "seconds": 75.0},
        "difference": None if method is None else difference,
        **more,
    }


def record(**more: Any) -> dict[str, Any]:
    return {
        "command": "vitcod compress --init-from deit.pth --output-dir out",
        "environment": {"torch": "2.9", "device_name": "a CPU"},
        "model_config": {"model": "deit_tiny_patch16_224"},
        "data": {"path": "IMAGENET", "labelled": True, "images": 500},
        "stages": [
            {
                "name": "low-rank",
                "command": "vitcod finetune-lowrank --epochs 0",
                "output": "x",
                "sha256": "ab" * 32,
            },
        ],
        "results": [
            row("dense", None, 0.0, 77.25),
            row("allocated_0.90", "allocated", 0.9, 71.5, ms_per_image=6.5),
        ],
        "model": {"file": "model.safetensors", "row": "allocated_0.90"},
        **more,
    }


def write(content: Any, name: str = "compress.json", folder: str = "out") -> None:
    Path(folder).mkdir(exist_ok=True)
    Path(folder, name).write_text(content if isinstance(content, str) else json.dumps(content))


def read(path: str = "out/report.html") -> Page:
    return Page(Path(path).read_text(encoding="utf-8"))


def test_the_figures_of_compress(cli: Cli) -> None:
    write(record())
    outcome = cli("report", "out")
    assert (outcome.code, outcome.out) == (0, "out/report.html\n")
    text = read().text
    for expected in (
        "71.50",
        "77.25",
        "-5.8",
        "[-8.0, -4.0]",
        "90.0%",
        "178.8 M",
        "21.8 MiB",
        "6.5",
        "a CPU",
        "500",
    ):
        assert expected in text, expected
    assert "vitcod compress --init-from deit.pth --output-dir out" in text
    assert "vitcod finetune-lowrank --epochs 0" in text
    assert "ab" * 8 in text


def test_it_tells_no_passwords(cli: Cli) -> None:
    address = "https://me:hunter2@example.org/deit.pth?token=hunter3"
    stage = {"name": "dense", "command": f"vitcod finetune-lowrank --init-from {address}", "output": "x"}
    write(record(command=f"vitcod compress --init-from {address}", stages=[stage]))
    assert cli("report", "out").code == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "example.org/deit.pth" in page
    assert "hunter" not in page


def test_only_the_finished_model_is_read(cli: Cli) -> None:
    write(record())
    for name in ("allocated_0.90", "allocated_0.95"):
        write('{"epoch": 1, "acc1": 50}', "metrics.jsonl", f"out/{name}")
        write("no checkpoint", "best.safetensors", f"out/{name}")
    outcome = cli("report", "out")
    assert outcome.code == 1
    assert "allocated_0.90/best.safetensors" in outcome.err
    Path("out/allocated_0.90/best.safetensors").unlink()
    assert cli("report", "out").code == 0
    assert "allocated_0.95" not in read().text


def test_a_sweep_has_its_curves(cli: Cli) -> None:
    points = [
        row(f"{method}_{sparsity:.2f}", method, sparsity, 77.25 - 8 * sparsity - (method == "info"))
        for method in ("info", "allocated")
        for sparsity in (0.1, 0.5, 0.9)
    ]
    content = record(results=[row("dense", None, 0.0, 77.25), *points])
    del content["model"]
    write(content, "sweep.json")
    assert cli("report", "out").code == 0
    page = read()
    assert sum(tag == "polyline" for tag, _ in page.tags) == 4
    assert sum(tag == "circle" for tag, _ in page.tags) == 12
    assert "sparsity for 1 point" in page.text
    assert "allocated_0.10" in page.text


def test_without_labels_it_speaks_of_agreement(cli: Cli) -> None:
    write(record(data={"path": "pictures", "labelled": False, "images": 20}))
    assert cli("report", "out").code == 0
    body = read().text.partition("Terms")[0]
    assert "agreement with dense" in body
    assert "Acc@1" not in body


def test_a_real_run_and_what_lies_beside_it(cli: Cli, image_folder: Path) -> None:
    model = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
    kwargs = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
    words = ("finetune-dense", *model, *kwargs, "--data-path", image_folder, "--batch-size", 10, "--workers", 0)
    assert cli(*words, "--epochs", 2, "--no-repeated-aug", "--output-dir", "runs/dense").code == 0
    keep = np.random.default_rng(0).random((2, 3, 17, 17)) < 0.4
    write_mask("runs/mask.safetensors", Mask(keep, {}))
    write_attention_map("runs/attn.safetensors", AttentionMap(np.full((2, 3, 17, 17), 1 / 17, np.float32), 4, {}))
    outcome = cli("report", "runs")
    assert outcome.code == 0, outcome.err
    page = read("runs/report.html")
    lines = [json.loads(line) for line in Path("runs/dense/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert f"{line['loss']:.4g}" in page.text
        assert f"{line['train_loss']:.4g}" in page.text
    assert f"{100 * (1 - keep[1, 2].mean()):.1f}" in page.text
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert cli("report", "runs").code == 0  # a page of ours is replaced, and isn't taken for a run


def test_nothing_is_fetched_and_the_same_is_the_same(cli: Cli) -> None:
    write(record())
    assert cli("report", "out").code == 0
    first = Path("out/report.html").read_bytes()
    assert cli("report", "out").code == 0
    assert Path("out/report.html").read_bytes() == first
    page = read()
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or str(value).startswith(("data:image/png", "#"))
    assert not re.search(rb"url\(|@import|https?://", first)
    assert dict(page.tags)["html"]["lang"] == "en"


@pytest.mark.parametrize("place", ["name", "command", "path", "title", "environment", "stage"])
def test_what_comes_from_files_is_text(cli: Cli, place: str) -> None:
    content = record()
    if place == "name":
        content["results"][1]["name"] = content["model"]["row"] = HOSTILE
    elif place == "command":
        content["command"] = HOSTILE
    elif place == "path":
        content["data"]["path"] = HOSTILE
    elif place == "environment":
        content["environment"] = {HOSTILE: HOSTILE}
    elif place == "stage":
        content["stages"][0] = dict.fromkeys(("name", "command", "output", "sha256"), HOSTILE)
    write(content)
    assert cli("report", "out", *(("--title", HOSTILE) if place == "title" else ())).code == 0
    page = read()
    assert not any(tag in ("img", "script") for tag, _ in page.tags)
    raw = Path("out/report.html").read_text(encoding="utf-8")
    assert "\x1b" not in raw
    assert "\u202e" not in raw
    assert "onerror" in page.text, "it is shown"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "compress.json can't be read"),
        ("[]", "compress.json can't be read"),
        ('{"results": [1], "stages": []}', "compress.json can't be read"),
        ("[" * 100_000, "compress.json can't be read"),
        ('{"results": [{"name": "x"}], "stages": [{"name": "y", "seconds": "z"}]}', None),
        ('{"results": [], "stages": []}', None),
        ('{"results": [{"name": "x", "acc1": NaN, "difference": 3}], "stages": [], "model": 3, "data": 4}', None),
    ],
)
def test_damaged_records(cli: Cli, content: str, message: str | None) -> None:
    write(content)
    outcome = cli("report", "out")
    if message is None:
        assert outcome.code == 0, outcome.err
        read()
    else:
        assert outcome.code == 1
        assert message in outcome.err


def test_a_run_that_has_only_begun(cli: Cli) -> None:
    line = '{"epoch": 1, "loss": 1.25, "acc1": null}'
    write(f'{line}\n{{"epoch": 2, "lo', "metrics.jsonl", "run")
    write("a: [", "config.yaml", "run")
    outcome = cli("report", "run")
    assert outcome.code == 1
    assert "config.yaml can't be read" in outcome.err
    write("epochs: 3\n", "config.yaml", "run")
    assert cli("report", "run").code == 0
    text = read("run/report.html").text
    assert "There is no checkpoint yet" in text
    assert "1 lines of metrics.jsonl can't be read" in text
    assert "1.25" in text


def test_what_is_no_run(cli: Cli) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("x")
    for name, message in (
        ("empty", "holds no run, map or mask"),
        ("nowhere", "does not exist"),
        ("notes.txt", "neither a map nor a mask"),
    ):
        outcome = cli("report", name)
        assert outcome.code == 1
        assert message in outcome.err
        assert not Path(name, "report.html").exists() if Path(name).is_dir() else True
    write(record())
    Path("out/report.html").write_text("my own page")
    assert "exists; replace it with --overwrite" in cli("report", "out").err
    assert Path("out/report.html").read_text() == "my own page"
    assert cli("report", "out", "--overwrite").code == 0


def test_elements_escape() -> None:
    assert element("p", "a < b", class_='x"y') == '<p class="x&quot;y">a &lt; b</p>'
    assert element("p", Html("<b>bold</b>"), None, 3) == "<p><b>bold</b>3</p>"
    assert element("details", open=True) == "<details open></details>"
    assert element("details", open=False) == "<details></details>"


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0], [0.0, 0.0], [-1e9, 1e9], [1e-12, 2e-12], [float("nan"), 1.0]]
)
def test_any_values_can_be_drawn(values: list[float]) -> None:
    points = [Point(place, value) for place, value in enumerate(values)]
    chart = line_chart([Series("s", points)], title="t", x="x", y="y")
    assert chart is not None
    Page(chart)
    assert "nan" not in chart


def test_nothing_to_draw() -> None:
    assert line_chart([Series("s", [Point(0, float("inf"))])], title="t", x="x", y="y") is None
