"""``--dry-run``: nothing is done, and what it prints is the same call."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Cli, MakeMap, the_error

from vitcod_cli.cli.app import COMMANDS
from vitcod_cli.cli.dry_run import READ, WRITTEN
from vitcod_cli.cli.options import options_type
from vitcod_cli.settings import options_of

PATHS = ("FILE", "FOLDER", "RUN", "MASK", "MAP", "CHECKPOINT")


def test_what_it_prints_is_the_same_call(cli: Cli, make_map: MakeMap) -> None:
    np.save("map.npy", make_map())
    words = ("gen-mask", "--attn-map", "map.npy", "--method", "ratio", "--sparsity", 0.5)
    words += ("--output", "m.safetensors")
    outcome = cli(*words, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert list(Path().iterdir()) == [Path("map.npy")]
    comments = [line for line in outcome.out.splitlines() if line.startswith("#")]
    assert comments[1:] == ["# reads  map.npy (7.1 kB)", "# writes m.safetensors"]
    assert yaml.safe_load(outcome.out)["sparsity"] == 0.5
    assert cli(*words).code == 0
    expected = Path("m.safetensors").read_bytes()
    Path("m.safetensors").unlink()
    Path("call.yaml").write_text(outcome.out)
    assert cli("gen-mask", "--config", "call.yaml").code == 0
    assert Path("m.safetensors").read_bytes() == expected
    assert "# writes m.safetensors (exists)" in cli(*words, "--dry-run").out


def test_training_is_not_begun(cli: Cli, image_folder: Path) -> None:
    words = ("finetune-dense", "--model", "deit_tiny_patch16_224", "--data-path", image_folder, "--epochs", 3)
    outcome = cli(*words, "--output-dir", "run", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert f"# reads  {image_folder}" in outcome.out
    assert yaml.safe_load(outcome.out)["epochs"] == 3
    assert not Path("run").exists()


def test_what_is_no_file_here(cli: Cli, tiny_checkpoint: Path, image_folder: Path) -> None:
    """Names of timm, addresses, and data that will be downloaded are not looked for."""
    train = ("finetune-lowrank", "--model", "deit_tiny_patch16_224", "--data-path", image_folder)
    train += ("--output-dir", "run", "--dry-run")
    evaluate = ("eval", "--checkpoint", tiny_checkpoint, "--dataset", "torch/cifar10", "--data-path", "new")
    for words in (
        (*train, "--init-from", "timm", "--distill-from", "deit_base_patch16_224"),
        (*train, "--init-from", "https://example.org/deit.pth"),
        (*evaluate, "--download", "--dry-run"),
    ):
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
    message = the_error(cli(*train, "--init-from", "timm", "--distill-from", "nobody"))
    assert "--distill-from nobody does not exist" in message
    assert "--data-path new does not exist" in the_error(cli(*evaluate, "--dry-run"))


def test_what_is_wrong_is_said(cli: Cli) -> None:
    message = the_error(cli("gen-mask", "--attn-map", "gone.npy", "--dry-run"))
    assert "--attn-map gone.npy does not exist" in message
    assert "--sparsity must be" in the_error(cli("gen-mask", "--attn-map", "x", "--sparsity", 3, "--dry-run"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_is_known(command: str) -> None:
    """An option that names a file or folder is read or written."""
    module, function = COMMANDS[command].function.split(".")
    options = options_type(getattr(import_module(f"vitcod_cli.commands.{module}"), function))
    paths = {name for name, option in options_of(options).items() if str(option.info.metavar).startswith(PATHS)}
    assert paths <= READ | WRITTEN


def test_a_file_that_gets_its_name_later(cli: Cli, make_map: MakeMap) -> None:
    np.save("map.npy", make_map())
    words = ("gen-mask", "--attn-map", "map.npy", "--dry-run")
    assert "# writes a file: named after method and sparsity reached" in cli(*words).out
    assert "# writes a file:" not in cli(*words, "--output", "m.safetensors").out
