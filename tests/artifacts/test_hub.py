"""The Hub, against a stand-in on this machine: a model goes there and comes back with the same bits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Cli
from hub_server import TOKEN, Hub, hub_server

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
QUICK = ("--batch-size", 10, "--no-repeated-aug", "--workers", 0, "--epochs", 0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@pytest.fixture
def run(run_cli: Any, hub: Hub, tmp_path: Path) -> Any:
    """A command whose hub is the stand-in."""
    here = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    here |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        result: subprocess.CompletedProcess[str] = run_cli(*words, **{**here, **environment})
        return result

    return call


@pytest.fixture
def dense(image_folder: Path) -> tuple[object, ...]:
    return ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, *QUICK, "--output-dir", "run")


def test_there_and_back(run: Any, hub: Hub, dense: tuple[object, ...], image_folder: Path, tmp_path: Path) -> None:
    done = run(*dense, "--push-to-hub", "me/tiny")
    assert done.returncode == 0, done.stderr
    assert f"Uploaded to {hub.url}/me/tiny" in done.stderr
    files = hub.files["me/tiny"]
    assert files.keys() == {"model.safetensors", "README.md", "config.json"}
    assert files["model.safetensors"] == (tmp_path / "run/best.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert 'vitcod_cli.load("hf-hub:me/tiny")' in card
    assert str(image_folder) not in card
    back = run("eval", "--checkpoint", "hf-hub:me/tiny", "--data-path", image_folder)
    here = run("eval", "--checkpoint", "run/best.safetensors", "--data-path", image_folder)
    assert back.returncode == 0, back.stderr
    assert back.stdout == here.stdout
    code = "import vitcod_cli; print(vitcod_cli.load('hf-hub:me/tiny').num_classes)"
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "PATH": "/usr/bin",
    }
    words = [sys.executable, "-c", code]
    loaded = subprocess.run(
        words, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert loaded.stdout == "5\n", loaded.stderr


def test_a_failing_upload_loses_nothing(run: Any, hub: Hub, dense: tuple[object, ...], tmp_path: Path) -> None:
    hub.refuse["/commit/"] = 403
    failed = run(*dense, "--push-to-hub", "me/tiny")
    assert failed.returncode == 1
    assert "try again with vitcod push run/best.safetensors me/tiny" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "run/best.safetensors").is_file()
    hub.refuse.clear()
    again = run("push", "run", "me/tiny", "--private")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{hub.url}/me/tiny\n"
    assert hub.files["me/tiny"]["model.safetensors"] == (tmp_path / "run/best.safetensors").read_bytes()
    assert b"hf-hub:me/tiny" in hub.files["me/tiny"]["README.md"]


@pytest.mark.slow
def test_compress_uploads_what_it_made(run: Any, hub: Hub, dense: tuple[object, ...], image_folder: Path) -> None:
    assert run(*dense).returncode == 0
    words = ("compress", "--init-from", "run/best.safetensors", "--data-path", image_folder, "--sparsity", 0.5)
    quick = ("--align-steps", 2, "--calibrate-steps", 2, "--calibrate-images", 6, "--calibrate-batch-size", 3)
    done = run(*words, *quick, "--output-dir", "out", "--push-to-hub", "me/sparse", "--hub-private")
    assert done.returncode == 0, done.stderr
    card = hub.files["me/sparse"]["README.md"].decode()
    assert "of the attention entries are pruned" in card
    there = run(
        "eval", "--checkpoint", "hf-hub:me/sparse", "--against", "run/best.safetensors", "--json", *words[3:5]
    )
    assert there.returncode == 0, there.stderr


@pytest.mark.parametrize(
    ("repo", "environment", "message"),
    [
        ("me/bad name", {}, "is no name of a repository"),
        ("a/b/c", {}, "is no name of a repository"),
        ("alone", {}, "doesn't say whose repository it is"),
        ("me/tiny", {"HF_TOKEN": "hf_wrong"}, "the hub refuses the token"),
        ("me/tiny", {"HF_TOKEN": ""}, "needs a token of the hub"),
        ("me/tiny", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("me/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub can't be reached"),
    ],
)
def test_what_is_found_before_the_run(
    run: Any,
    hub: Hub,
    dense: tuple[object, ...],
    repo: str,
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
) -> None:
    outcome = run(*dense, "--push-to-hub", repo, **environment)
    assert outcome.returncode == 1
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert TOKEN not in outcome.stderr
    assert not (tmp_path / "run").exists()
    assert not hub.files


def test_what_is_not_on_the_hub(run: Any, hub: Hub, image_folder: Path, tmp_path: Path) -> None:
    missing = run("eval", "--checkpoint", "hf-hub:me/nothing", "--data-path", image_folder)
    assert missing.returncode == 1
    assert "hf-hub:me/nothing: its model.safetensors could not be had from the hub" in missing.stderr
    nameless = run("eval", "--checkpoint", "hf-hub:", "--data-path", image_folder)
    assert nameless.returncode == 1
    assert "is no name of a repository" in nameless.stderr
    (tmp_path / "notes.txt").write_text("x")
    for source, message in (("notes.txt", "is no checkpoint of vitcod"), (".", "holds neither model.safetensors")):
        refused = run("push", source, "me/tiny")
        assert refused.returncode == 1
        assert message in refused.stderr


def test_the_card_of_a_run(cli: Cli, dense: tuple[object, ...], image_folder: Path, tmp_path: Path) -> None:
    assert cli(*dense).code == 0
    path = tmp_path / "run/README.md"
    text = path.read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "vitcod"
    assert front["pipeline_tag"] == "image-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == image_folder.name
    assert result["metrics"][0]["name"] == "Acc@1"
    assert f"vitcod finetune-dense --model deit_tiny_patch16_224 --model-kwargs {' '.join(KWARGS[1:])}" in text
    # Ours is replaced; somebody else's is left alone.
    assert cli(*dense, "--overwrite").code == 0
    path.write_text("mine")
    assert cli(*dense, "--overwrite").code == 0
    assert path.read_text() == "mine"


def test_names_cannot_forge_a_card() -> None:
    from vitcod_cli.artifacts.model_card import CardModel, model_card

    name = 'x\n---\nlicense: mit\n# <img src=x> [a](b) `c` "\x1b'
    info = {"model_config": {"model": name, "num_classes": name, "svd_type": name}, "versions": {name: name}}
    info |= {"sha256": {name: name}, "acc1": 70.0}
    text = model_card(CardModel(Path("m"), "00", info, [0.9]), command=name, dataset=f"/home/me/{name}")
    front = yaml.safe_load(text.split("---\n")[1])
    assert "license" not in front
    assert front["model-index"][0]["name"] == name
    body = text.split("---\n", 2)[2]
    assert "\x1b" not in body
    prose = "\n".join(line for line in body.splitlines() if not line.startswith("    "))  # the rest is code
    assert "<img" not in prose.replace("\\<img", "")
    assert not any(line.startswith("license") or line == "---" for line in body.splitlines())
