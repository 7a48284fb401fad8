"""Help is quick, complete and fits the terminal."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import timm
from command_line import ROOT, Cli

from vitcod_cli import __version__
from vitcod_cli.artifacts.model_arguments import VIT_MODULES
from vitcod_cli.cli.app import COMMANDS, _load
from vitcod_cli.cli.completion import model_names
from vitcod_cli.cli.first_screen import FIRST
from vitcod_cli.cli.options import options_type
from vitcod_cli.settings import Settings, options_of

HEAVY = ("torch", "timm", "matplotlib", "torchvision", "pydantic", "rich")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_nothing_heavy(command: str | None) -> None:
    words = ["--help"] if command is None else [command, "--help"]
    code = (
        "import sys; from vitcod_cli.__main__ import main; "
        f"code = main({words!r}); "
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]; "
        "sys.exit(f'loaded: {loaded}' if loaded else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "Usage: vitcod" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(cli: Cli, command: str) -> None:
    outcome = cli(command, "--help-all")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    # An option with many choices may be longer than the line; prose may not.
    assert all(len(line) <= 80 for line in lines if not line.startswith("  --")), outcome.out
    flags = [word for line in lines for word in line.split() if word.startswith("--")]
    assert not [flag for flag in flags if "_" in flag], "underscores are accepted, not shown"
    assert not [flag for flag in flags if flag.startswith("--no-no-")]
    assert lines[-1].strip().startswith("-h, --help")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_screen_of_a_command(cli: Cli, command: str) -> None:
    out = cli(command, "--help").out
    lines = out.splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 80 for line in lines), out
    everything = cli(command, "--help-all").out
    options = list(options_of(options_type(_function(command))).values())
    for option in options:
        flag = option.info.flag.split("/")[0]
        assert option.info.hidden or option.info.positional or flag in everything
        if option.info.hint is not None and not option.info.positional:
            assert flag in out, "what is required is shown"
    assert re.sub(r"\s+", " ", FIRST[command].example.replace("\\\n", " ")) in re.sub(r"[\s\\\\]+", " ", out)
    if len(options) > 12:
        assert f"vitcod {command} --help-all shows all" in lines[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_command_lines(command: str) -> None:
    words = shlex.split(FIRST[command].example.replace("\\\n", " "))
    assert words[:2] == ["vitcod", command]
    context = _load(command).make_context(command, words[2:])
    settings = options_type(_function(command)).from_flat(
        {
            name: value
            for name, value in context.params.items()
            if name not in ("config", "config_shared", "dry_run", "help_all")
        }
    )
    assert isinstance(settings, Settings)


def _function(command: str) -> Any:
    module, function = COMMANDS[command].function.split(".")
    return getattr(import_module(f"vitcod_cli.commands.{module}"), function)


def test_panels_and_defaults_of_finetune_sparse(cli: Cli) -> None:
    out = cli("finetune-sparse", "--help-all").out
    for panel in ("Model", "Data", "Augmentation", "Recipe", "Runtime", "Output"):
        assert f"\n{panel}:\n" in out
    words = " ".join(out.split())
    assert (
        "--lr <float> Learning rate for a global batch of 512; scaled to the real one. [default: 1e-05]" in words
    )
    assert "--svd" not in out


def test_commands_are_listed_whole(cli: Cli) -> None:
    out = cli("--help").out
    for name, entry in COMMANDS.items():
        assert name in out
        assert entry.summary in out


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"vitcod {__version__}\n", "")


def test_no_arguments_show_the_help(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert outcome.err == cli("--help").out


def test_mistyped_command_and_option(cli: Cli) -> None:
    outcome = cli("finetun-sparse")
    assert outcome.code == 2
    assert "finetune-sparse" in outcome.err
    outcome = cli("eval", "--checkpiont", "x")
    assert outcome.code == 2
    assert "--checkpoint" in outcome.err


def test_a_forgotten_value(cli: Cli) -> None:
    outcome = cli("dump-attn", "--checkpoint", "x", "--output", "--overwrite")
    assert outcome.code == 2
    assert "'--output' requires an argument" in outcome.err
    assert "requires an argument" in cli("eval", "--checkpoint").err
    assert "must be a whole number, not ''" in cli("finetune-dense", "--epochs=").err


def test_shell_completion(run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    # From a bash: the shell is found among the parent processes, and CI may have none there.
    inside = ["bash", "-c", '"$0" -m vitcod_cli --show-completion; exit $?', sys.executable]
    script = subprocess.run(
        inside,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert script.returncode == 0
    completed = run_cli(_VITCOD_COMPLETE="complete_bash", COMP_WORDS="vitcod fine", COMP_CWORD="1")
    assert completed.stdout.split() == ["finetune-dense", "finetune-lowrank", "finetune-sparse"]


def test_completion_of_model_names(run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    completed = run_cli(_VITCOD_COMPLETE="complete_bash", COMP_WORDS="vitcod eval --model deit_t", COMP_CWORD="3")
    assert completed.stdout.split() == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
    assert set(model_names("")) == {name for module in VIT_MODULES for name in timm.list_models(module=module)}
