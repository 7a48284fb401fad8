"""All four steps on a tiny model and random pictures, the files they leave, and running them again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import Cli, Outcome
from safetensors import safe_open
from safetensors.torch import load_file

from vitcod_cli.artifacts.run_directory import RunDirectory
from vitcod_cli.errors import VitcodError

RUN_FILES = [
    "README.md",
    "best.safetensors",
    "config.yaml",
    "last.safetensors",
    "metrics.csv",
    "metrics.jsonl",
    "state.safetensors",
]
MODEL = ("--model", "deit_tiny_patch16_224", "--img-size", 32)
KWARGS = ("--model-kwargs", "patch_size=8", "embed_dim=24", "depth=2", "num_heads=3")
QUICK = ("--epochs", 1, "--batch-size", 10, "--no-repeated-aug", "--workers", 0)
CALIBRATE = ("--calibrate-steps", 2, "--calibrate-images", 6, "--calibrate-batch-size", 3)


class Pipeline:
    """The commands of one pass through all steps, run in the current folder."""

    def __init__(self, cli: Cli, images: Path) -> None:
        self.cli, self.data = cli, ("--data-path", images)

    def ok(self, *words: object) -> Outcome:
        outcome = self.cli(*words)
        assert outcome.code == 0, outcome.err
        return outcome

    def dense(self, folder: str = "dense") -> Outcome:
        return self.ok("finetune-dense", *MODEL, *KWARGS, *self.data, *QUICK, "--output_dir", folder)

    def lowrank(self, *extra: object) -> Outcome:
        start = ("--init-from", "dense/last.safetensors", "--align-steps", 2, *CALIBRATE)
        return self.ok("finetune-lowrank", *start, *self.data, *QUICK, "--output-dir", "lowrank", *extra)

    def dump(self) -> Outcome:
        words = ("--checkpoint", "lowrank/last.safetensors", *self.data, "--workers", 0)
        return self.ok("dump-attn", *words, "--output", "attn.safetensors")

    def mask(self) -> Outcome:
        return self.ok("gen-mask", "--attn-map", "attn.safetensors", "--info_cut", 0.5, "--output_dir", "masks")

    def sparse(self, *extra: object) -> Outcome:
        mask = next(Path("masks").iterdir())
        start = ("--init-from", "lowrank/last.safetensors", "--mask_path", mask, *CALIBRATE)
        return self.ok("finetune-sparse", *start, *self.data, *QUICK, "--output-dir", "sparse", *extra)

    def eval(self, checkpoint: str, *extra: object) -> Outcome:
        return self.ok("eval", "--checkpoint", checkpoint, *self.data, "--workers", 0, *extra)


@pytest.fixture
def pipeline(cli: Cli, image_folder: Path) -> Pipeline:
    return Pipeline(cli, image_folder)


def test_all_four_steps(pipeline: Pipeline) -> None:
    dense = pipeline.dense()
    assert dense.out.splitlines()[-1].startswith("* Acc@1 ")
    assert sorted(os.listdir("dense")) == RUN_FILES

    lowrank = json.loads(pipeline.lowrank("--json").out)
    assert lowrank["images"] == 13
    assert lowrank["checkpoint"] == "lowrank/best.safetensors"
    assert sorted(os.listdir("lowrank")) == RUN_FILES
    weights = load_file("lowrank/last.safetensors")
    assert weights["blocks.1.attn.encoder_q.weight"].shape == (2, 3)

    assert pipeline.dump().out == "attn.safetensors\n"
    attention = load_file("attn.safetensors")["attention"]
    assert attention.shape == (2, 3, 17, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 17))

    printed = pipeline.mask().out.strip()
    [mask] = Path("masks").iterdir()
    assert printed == str(mask)
    keep = load_file(mask)["keep"]
    assert mask.name == f"info_{1 - keep.float().mean():.2f}.safetensors"

    pipeline.sparse()
    assert sorted(os.listdir("sparse")) == RUN_FILES
    assert torch.equal(load_file("sparse/last.safetensors")["blocks.1.attn.keep"], keep[1])

    # One file, without naming model or mask.
    outcome = pipeline.eval("sparse/best.safetensors", "--json")
    result = json.loads(outcome.out)
    assert {"acc1", "acc5", "loss", "images"} <= set(result)
    assert result["images"] == 13
    with_mask = json.loads(pipeline.eval("sparse/best.safetensors", "--mask", mask, "--json").out)
    figures = ("acc1", "acc5", "loss", "sparsity", "sha256")
    assert [with_mask[name] for name in figures] == [result[name] for name in figures], "the mask is in it already"
    unmasked = json.loads(pipeline.eval("lowrank/last.safetensors", "--json").out)
    masked = json.loads(pipeline.eval("lowrank/last.safetensors", "--mask", mask, "--json").out)
    assert masked["loss"] != unmasked["loss"]

    line = pipeline.eval("sparse/best.safetensors").out
    assert line == f"* Acc@1 {result['acc1']:.3f} Acc@5 {result['acc5']:.3f} loss {result['loss']:.3f}\n"


def test_a_run_explains_and_repeats_itself(pipeline: Pipeline) -> None:
    pipeline.dense()
    config = yaml.safe_load(Path("dense/config.yaml").read_text())
    assert config["batch_size"] == 10
    assert config["lr"] == 5e-4
    assert config["about"]["command"] == "finetune-dense"
    assert config["about"]["model_config"]["model_kwargs"]["embed_dim"] == 24
    pipeline.ok("finetune-dense", "--config", "dense/config.yaml", "--output-dir", "again")
    first, second = (load_file(f"{folder}/last.safetensors") for folder in ("dense", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    pipeline.lowrank()
    recorded = yaml.safe_load(Path("lowrank/config.yaml").read_text())
    assert recorded["init_from"] == "dense/last.safetensors"
    with safe_open("lowrank/last.safetensors", "pt") as file:
        about = json.loads(file.metadata()["vitcod"])
    assert about["sha256"] == recorded["about"]["sha256"]
    assert about["sha256"]["init_from"]
    pipeline.ok("finetune-lowrank", "--config", "lowrank/config.yaml", "--output-dir", "lowrank2")
    first, second = (load_file(f"{folder}/last.safetensors") for folder in ("lowrank", "lowrank2"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_epochs_stop_after_calibration(pipeline: Pipeline) -> None:
    pipeline.dense()
    outcome = pipeline.lowrank("--epochs", 0)
    assert outcome.out.startswith("* Acc@1")
    stages = [json.loads(line).get("stage") for line in Path("lowrank/metrics.jsonl").read_text().splitlines()]
    assert stages.count("calibrate") == 2, "one line a block"
    pipeline.ok("finetune-dense", *MODEL, *KWARGS, *pipeline.data, "--epochs", 0, "--output-dir", "untrained")


@pytest.mark.parametrize(
    "stop", [{"stage": "calibrate", "block": 1}, {"epoch": 1}], ids=["calibration", "training"]
)
def test_a_stopped_run_logs_its_calibration_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, stop: dict[str, object]
) -> None:
    """Whether a state was saved, or the run before is still there."""

    def log(run: RunDirectory, **metrics: object) -> None:
        if stop.items() <= metrics.items():
            raise VitcodError("stopped")
        write(run, **metrics)

    def lines() -> list[tuple[object, ...]]:
        text = Path("lowrank/metrics.jsonl").read_text()
        return [tuple(map(json.loads(line).get, ("stage", "block", "epoch"))) for line in text.splitlines()]

    pipeline.dense()
    pipeline.lowrank()
    whole, write = lines(), RunDirectory.log
    assert {("calibrate", 0, None), ("calibrate", 1, None), (None, None, 1)} < set(whole)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log", log)
        with pytest.raises(AssertionError, match="stopped"):
            pipeline.lowrank("--overwrite")
    if "epoch" in stop:
        assert lines() != whole
    pipeline.lowrank("--resume")
    assert lines() == whole


def test_overwrite_and_resume(pipeline: Pipeline) -> None:
    pipeline.dense()
    before = Path("dense/last.safetensors").read_bytes()
    words = ("finetune-dense", *MODEL, *KWARGS, *pipeline.data, *QUICK, "--output-dir", "dense")
    pipeline.ok(*words, "--overwrite", "--seed", 1)
    assert Path("dense/last.safetensors").read_bytes() != before
    changed = Path("dense/last.safetensors").read_bytes()
    pipeline.ok(*words, "--resume", "auto", "--seed", 1)
    assert load_file("dense/last.safetensors").keys()
    assert Path("dense/last.safetensors").read_bytes() == changed, "it was finished"
    config = yaml.safe_load(Path("dense/config.yaml").read_text())
    assert not {"resume", "overwrite"} & set(config)


def test_distillation_needs_no_labels(pipeline: Pipeline) -> None:
    pipeline.dense()
    pipeline.lowrank("--distill-from", "dense/last.safetensors")
    assert pipeline.eval("lowrank/last.safetensors").out.startswith("* Acc@1")


def test_published_mask_and_map(pipeline: Pipeline) -> None:
    """A published .npy says True = pruned, and goes wherever ours goes."""
    pipeline.dense()
    np.save("keep_all.npy", np.zeros((2, 3, 17, 17), dtype=bool))
    plain = json.loads(pipeline.eval("dense/last.safetensors", "--json").out)
    masked = json.loads(pipeline.eval("dense/last.safetensors", "--json", "--mask", "keep_all.npy").out)
    assert [masked[name] for name in ("acc1", "acc5", "loss")] == [
        plain[name] for name in ("acc1", "acc5", "loss")
    ]
    assert (plain["mask"], masked["mask"]) == (None, "keep_all.npy")


def test_the_data_set_decides_the_classes_of_a_dense_model(pipeline: Pipeline) -> None:
    pipeline.dense()
    assert load_file("dense/last.safetensors")["head.weight"].shape == (5, 24)
    words = ("--init-from", "dense/last.safetensors", *pipeline.data, *QUICK)
    outcome = pipeline.ok("finetune-dense", *words, "--num-classes", 7, "--output-dir", "seven")
    assert load_file("seven/last.safetensors")["head.weight"].shape == (7, 24)
    assert "starts afresh" in outcome.err


def test_real_model_in_a_few_steps(cli: Cli, shared: Path) -> None:
    """DeiT-Tiny and real pictures: a published low-rank checkpoint goes on through steps 2, 3 and 4."""
    for split in ("train", "val"):
        Path("images", split).mkdir(parents=True)
        for folder in sorted((shared / "data/imagenet-sample" / split).iterdir())[:9]:
            Path("images", split, folder.name).symlink_to(folder)
    lowrank, data = shared / "weights/deit_tiny_lowrank_reference.pth", ("--data-path", "images", "--workers", 0)

    outcome = cli("eval", "--checkpoint", lowrank, *data, "--json")
    result = json.loads(outcome.out)
    assert result["images"] == 9
    assert result["acc5"] > 60, "the labels are ImageNet's, whichever classes are there"
    assert cli("dump-attn", "--checkpoint", lowrank, *data, "--max-images", 4).code == 0
    assert cli("gen-mask", "--attn-map", "attn.safetensors", "--output", "mask.safetensors").code == 0
    words = ("--init-from", lowrank, "--mask", "mask.safetensors", *data, "--max-steps", 1, "--batch-size", 4)
    outcome = cli("finetune-sparse", *words, "--calibrate-steps", 0, "--output-dir", "run", "--json")
    assert outcome.code == 0, outcome.err
    again = json.loads(cli("eval", "--checkpoint", "run/best.safetensors", *data, "--json").out)
    trained = json.loads(outcome.out)
    figures = ("acc1", "acc5", "loss", "images")
    assert [again[name] for name in figures] == pytest.approx([trained[name] for name in figures], rel=1e-5)
