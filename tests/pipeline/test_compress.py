"""``vitcod compress`` as a user types it: one folder, gone on with, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli, Outcome
from numpy.typing import NDArray
from safetensors.torch import load_file

import vitcod_cli.pipeline.compress
import vitcod_cli.pipeline.stages
from vitcod_cli.artifacts.attention_map import read_attention_map
from vitcod_cli.artifacts.mask import read_mask

MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
QUICK = ("--align-steps", 2, "--calibrate-steps", 2, "--calibrate-images", 6, "--calibrate-batch-size", 3)
FILES = ["attn.safetensors", "compress.json", "dense.safetensors", "lowrank", "model.safetensors"]


@pytest.fixture
def dense(cli: Cli, image_folder: Path) -> str:
    words = ("finetune-dense", *MODEL, *KWARGS, "--data-path", image_folder, "--batch-size", 10, "--workers", 0)
    assert cli(*words, "--epochs", 0, "--no-repeated-aug", "--output-dir", "dense").code == 0
    return "dense/last.safetensors"


@pytest.fixture
def compress(cli: Cli, image_folder: Path, dense: str) -> Any:
    def run(*words: object, data: object = image_folder) -> Outcome:
        start = ("compress", "--init-from", dense, "--data-path", data, "--workers", 0, *QUICK)
        return cli(*start, "--output-dir", "out", *words)

    return run


def record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("out/compress.json").read_text())
    return content


def test_from_weights_to_a_model(compress: Any, cli: Cli, image_folder: Path) -> None:
    outcome = compress("--sparsity", 0.6)
    assert outcome.code == 0, outcome.err
    assert sorted(set(os.listdir("out")) - {"README.md"}) == sorted(
        [*FILES, "allocated_0.60", "allocated_0.60.safetensors"]
    )
    assert "Plan, with times expected here:" in outcome.err
    assert max(len(line) for line in outcome.out.splitlines() if not line.startswith("  vitcod")) <= 80
    assert Path("out/model.safetensors").read_bytes() == Path("out/allocated_0.60/best.safetensors").read_bytes()
    content = record()
    assert [stage["name"] for stage in content["stages"]] == [
        *("dense", "low-rank", "attention map", "mask allocated_0.60", "sparse allocated_0.60")
    ]
    first, lowrank, final = content["results"]
    assert (first["name"], lowrank["name"], final["name"]) == ("dense", "low-rank", "allocated_0.60")
    assert first["difference"] is None
    assert final["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert final["attention_macs"] < first["attention_macs"]
    # The figures are those of eval.
    evaluated = cli("eval", "--checkpoint", "out/model.safetensors", "--data-path", image_folder, "--json")
    assert json.loads(evaluated.out)["loss"] == pytest.approx(final["loss"], abs=1e-6)


def test_a_sparse_mask_is_made_in_stages(compress: Any) -> None:
    """What was pruned on the way stays pruned, and the stages are gone on with."""
    options = ("--via", 0.6, 0.3, 0.8, "--calibrate-joint-steps", 3)
    outcome = compress("--sparsity", 0.7, *options)
    assert outcome.code == 0, outcome.err
    assert "on the way, 30%: calibrated, mapped again" in outcome.err
    way = ("via_0.30", "via_0.60")
    on_the_way = [(f"mask {name}", f"sparse {name}", f"attention map {name}_attn") for name in way]
    names = [stage["name"] for stage in record()["stages"]]
    assert names[3:] == [*on_the_way[0], *on_the_way[1], "mask allocated_0.70", "sparse allocated_0.70"]
    masks = [keep_of(f"out/{name}.safetensors") for name in ("via_0.30", "via_0.60", "allocated_0.70")]
    shares = [float(keep.mean()) for keep in masks]
    assert shares == pytest.approx([0.7, 0.4, 0.3], abs=0.01)
    assert all(bool((more | ~fewer).all()) for more, fewer in itertools.pairwise(masks))
    words = {stage["output"]: stage["command"].split() for stage in record()["stages"]}
    for name, steps, joint in (("via_0.30", "1", "2"), ("via_0.60", "1", "2"), ("allocated_0.70", "2", "3")):
        command = words[f"{name}/best.safetensors"]
        assert command[command.index("--calibrate-steps") + 1] == steps
        assert command[command.index("--calibrate-joint-steps") + 1] == joint
    final = record()["results"][-1]
    assert final["seconds"] >= sum(stage["seconds"] for stage in record()["stages"][3:]) - 0.2
    again = compress("--sparsity", 0.65, *options, "--resume")
    assert again.code == 0, again.err
    assert again.err.count("Finished earlier") == 8
    straight = compress("--sparsity", 0.7, "--via", 0, "--overwrite")
    assert straight.code == 0, straight.err
    assert [stage["name"] for stage in record()["stages"]][3:] == ["mask allocated_0.70", "sparse allocated_0.70"]


@pytest.mark.parametrize("words", [("--method", "info"), ("--calibrate-steps", 0)])
def test_other_masks_go_straight_there(compress: Any, words: tuple[object, ...]) -> None:
    assert compress("--sparsity", 0.6, "--via", 0.3, *words).code == 0
    assert not [stage["name"] for stage in record()["stages"] if "via" in stage["name"]]


def test_late_blocks_count_more_for_a_mask_that_is_calibrated(compress: Any) -> None:
    for words, weight in ((("--via", 0.3), 4), (("--calibrate-steps", 0, "--overwrite"), 1)):
        assert compress("--sparsity", 0.6, *words).code == 0
        maps = [stage for stage in record()["stages"] if stage["name"].startswith("attention map")]
        assert maps
        for stage in maps:
            assert read_attention_map(f"out/{stage['output']}").info["late_weight"] == weight
            assert stage["identity"]["--late-weight"] == weight


def keep_of(path: str) -> NDArray[np.bool_]:
    return read_mask(path).keep


def test_the_commands_it_shows_do_the_same(compress: Any, cli: Cli) -> None:
    """Each stage is one of the steps: its command, typed elsewhere, gives the very same weights."""
    assert compress("--sparsity", 0.6, "--via", 0.4).code == 0
    commands = [stage["command"] for stage in record()["stages"] if stage["command"]]
    before = load_file("out/model.safetensors")
    os.rename("out", "first")
    os.mkdir("out")
    os.link("first/dense.safetensors", "out/dense.safetensors")
    for command in commands:
        outcome = cli(*command.split()[1:])
        assert outcome.code == 0, outcome.err
    after = load_file("out/allocated_0.60/best.safetensors")
    assert all(bool((after[name] == tensor).all()) for name, tensor in before.items())


def test_it_goes_on_where_it_was_stopped(compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compress("--sparsity", 0.6).code == 0
    whole = load_file("out/model.safetensors")
    os.rename("out", "whole")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vitcod_cli.pipeline.stages, "finetune_sparse", interrupted)
        stopped = compress("--sparsity", 0.6)
        assert stopped.code == 130
        assert "Stopped in the stage sparse allocated_0.60" in stopped.err
    assert not Path("out/model.safetensors").exists()
    assert compress("--sparsity", 0.6).code == 1  # the folder isn't empty
    resumed = compress("--sparsity", 0.6, "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.err.count("Finished earlier") == 3
    now = load_file("out/model.safetensors")
    assert all(bool((now[name] == tensor).all()) for name, tensor in whole.items())


def test_finished_stages_of_other_options_are_not_gone_on_from(compress: Any, cli: Cli) -> None:
    assert compress("--sparsity", 0.6).code == 0
    before = Path("out/compress.json").read_bytes()
    other = compress("--sparsity", 0.6, "--resume", "--calibrate-steps", 3)
    assert other.code == 1
    assert "was made with another --calibrate-steps" in other.err
    assert Path("out/compress.json").read_bytes() == before
    # Another sparsity needs another mask, and nothing else again.
    more = compress("--sparsity", 0.5, "--resume")
    assert more.code == 0, more.err
    assert more.err.count("Finished earlier") == 2
    assert record()["model"]["row"] == "allocated_0.50"


def test_a_damaged_record_is_told_of(compress: Any) -> None:
    assert compress("--sparsity", 0.6).code == 0
    for content in ('{"stages": [', '{"stages": [{"name": "x"}], "results": []}', "[" * 100_000):
        Path("out/compress.json").write_text(content)
        outcome = compress("--sparsity", 0.6, "--resume")
        assert outcome.code == 1
        assert "compress.json can't be gone on from" in outcome.err


def test_a_lost_file_is_made_again(compress: Any) -> None:
    assert compress("--sparsity", 0.6).code == 0
    kept = Path("out/attn.safetensors").read_bytes()
    Path("out/attn.safetensors").write_bytes(kept[:-1])
    again = compress("--sparsity", 0.6, "--resume")
    assert again.code == 0, again.err
    assert len(Path("out/attn.safetensors").read_bytes()) == len(kept)


def test_as_sparse_as_may_be(compress: Any) -> None:
    """With 17 tokens, a key of every row and the class token leave 83 % at most: more can't be had."""
    outcome = compress("--max-drop", 100, "--svd-type", "none", "--calibrate-steps", 0, "--method", "info")
    assert outcome.code == 0, outcome.err
    assert 0.82 <= max(row["sparsity"] for row in record()["results"]) <= 0.8461
    assert "Points lost at each sparsity:" in outcome.err


def test_a_target_that_cannot_be_met(compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitcod_cli.pipeline.compress, "_drop", lambda row: 20 * row["sparsity"])
    outcome = compress("--max-drop", 1, "--calibrate-steps", 0)
    assert outcome.code == 1
    assert "--max-drop 1 can't be met: the best of" in outcome.err
    assert "10 % sparse, the least that is tried, costs 2.0 points" in outcome.err
    assert not Path("out/model.safetensors").exists()


def test_heads_that_cost_too_much(compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitcod_cli.pipeline.compress, "_drop", lambda row: 3.0)
    outcome = compress("--max-drop", 2, "--calibrate-steps", 0)
    assert outcome.code == 1
    assert "Low-rank heads alone cost 3.0 points, more than --max-drop 2" in outcome.err


def test_a_folder_of_images_without_labels(compress: Any, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for path in image_folder.rglob("*.jpg"):
        os.link(path, tmp_path / "pictures" / f"{path.parts[-3]}-{path.name}")
    outcome = compress("--sparsity", 0.5, "--epochs", 1, "--batch-size", 4, data="pictures")
    assert outcome.code == 0, outcome.err
    assert "has no validation split" in outcome.err
    assert "Acc@1" not in outcome.out
    assert "agreement with dense" in outcome.out
    content = record()
    assert content["data"] == {"path": "pictures", "labelled": False, "train_images": 27, "images": 6}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sparsity", 0.5, "--max-drop", 1), "--sparsity and --max-drop exclude each other"),
        (("--sparsity", 1), "--sparsity must be above 0 and below 1"),
        (("--max-drop", -1), "--max-drop must be between 0 and 100"),
        (("--init-from", "nowhere"), "nowhere"),
        (("--sparsity", 0.9, "--min-density", 0.2), "--min-density 0.2 keeps more than --sparsity 0.9 leaves"),
        (("--method", "info", "--min-density", 0.1), "--min-density goes with allocated masks"),
        (
            ("--min-density", 0.05, "--block-for", "cpu"),
            "--min-density counts single entries; leave it or --block-for",
        ),
        (("--block-for", "gpu"), "--block-for takes 128 queries in a tile, and an image has 16 patches"),
        (("--calibrate-images", 1), "--calibrate-images 1 is too few"),
        (("--epochs", 1, "--batch-size", 5), "--batch-size 5 must be even with --epochs"),
        (("--sparsity", 0.9, "--overwrite", "--resume"), "exclude each other"),
    ],
)
def test_what_is_refused_before_anything_is_made(compress: Any, words: tuple[object, ...], message: str) -> None:
    outcome = compress(*words)
    assert outcome.code == 1
    assert message in outcome.err
    assert not Path("out").exists()


def test_masks_of_tiles(compress: Any) -> None:
    """All masks, that on the way too. The 16 patches are one group, so that all their rows are the same."""
    outcome = compress("--sparsity", 0.7, "--via", 0.5, "--block", 16, "--block-keys", 1)
    assert outcome.code == 0, outcome.err
    for name in ("allocated_0.70", "via_0.50"):
        mask = read_mask(f"out/{name}.safetensors")
        assert (mask.info["block"], mask.info["block_keys"]) == (16, 1)
        assert (mask.keep[..., 1:, :] == mask.keep[..., 1:2, :]).all()
        assert not mask.keep[..., 1, :].all()


def test_a_sparse_model_is_not_compressed_again(compress: Any, cli: Cli, image_folder: Path) -> None:
    assert compress("--sparsity", 0.5).code == 0
    words = ("compress", "--init-from", "out/model.safetensors", "--data-path", image_folder, "--output-dir", "x")
    outcome = cli(*words)
    assert outcome.code == 1
    assert "has a mask already" in outcome.err
    # A low-rank one is, without its first stage.
    words = ("compress", "--init-from", "out/lowrank/best.safetensors", "--data-path", image_folder, *QUICK)
    outcome = cli(*words, "--sparsity", 0.5, "--output-dir", "x")
    assert outcome.code == 0, outcome.err
    assert "is low-rank already" in outcome.err


@pytest.mark.slow
def test_two_processes(run_cli: Any, image_folder: Path, dense: str, tmp_path: Path) -> None:
    words = ("--init-from", dense, "--data-path", image_folder, *QUICK, "--sparsity", 0.6, "--threads", 1)
    both = run_cli("compress", *words, "--nproc-per-node", 2, "--output-dir", "two", "--json")
    assert both.returncode == 0, both.stderr
    alone = run_cli("compress", *words, "--output-dir", "one", "--json")
    two, one = json.loads(both.stdout), json.loads(alone.stdout)
    assert [stage["name"] for stage in two["stages"]] == [stage["name"] for stage in one["stages"]]
    for mine, theirs in zip(two["results"], one["results"], strict=True):
        assert mine["images"] == theirs["images"] == 13
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=0.02)
    again = run_cli("compress", *words, "--nproc-per-node", 2, "--output-dir", "two", "--json", "--resume")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["results"] == two["results"]
