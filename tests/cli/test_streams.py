"""stdout and stderr: closed, full, without a reader, a terminal; and what is never passed on to them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, Cli, MakeMap, the_error

from vitcod_cli.cli.console import PlainReporter, RichReporter, print_json, print_path, print_result, print_table
from vitcod_cli.cli.streams import Talk, guard
from vitcod_cli.reporting import visible

EVIL = "\x1b[31m\x1b]0;title\x07\r\b\n\x85\x9b2J\u202e\u2066\udcff[red]:smile:\nError: forged"
HARMLESS = "\\x1b[31m\\x1b]0;title\\x07\\r\\x08\\n\\x85\\x9b2J\\u202e\\u2066\\udcff[red]:smile:\\nError: forged"
GEN_MASK = "gen-mask --attn-map map.npy --sparsity 0.5 --overwrite --output m.safetensors"

Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(tmp_path: Path, make_map: MakeMap) -> Shell:
    """``shell("gen-mask ... >&-")``, as bash does it, in a folder that has a map.npy."""
    np.save(tmp_path / "map.npy", make_map())

    def run(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script = f"{sys.executable} -m vitcod_cli {line}"
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_visible() -> None:
    assert visible("plain text, ä, 日本\u3000, 👍") == "plain text, ä, 日本\u3000, 👍"
    assert visible(EVIL) == HARMLESS
    for code in (*range(32), *range(127, 160), 0xAD, 0x200B, 0x200E, 0x2028, 0xFEFF, 0xD800, 0xE0001):
        shown = visible(f"a{chr(code)}b")
        assert shown.isascii()
        assert shown.isprintable()


@pytest.mark.parametrize(
    "command", ["eval --checkpoint", "dump-attn --output map.safetensors --data-path . --checkpoint"]
)
def test_secrets_in_addresses_are_not_told(cli: Cli, command: str) -> None:
    error = the_error(cli(*command.split(), "https://me:word@localhost:1/x.pth?v=2&token=abc"))
    assert "https://...@localhost:1/x.pth?v=2&token=... could not be downloaded" in error


def test_nothing_that_a_terminal_obeys_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = PlainReporter()
    reporter.info(EVIL)
    reporter.warn(EVIL)
    print_result(EVIL)
    print_table(f"\x1b[1mbold\x1b[0m\n{EVIL}")
    out, err = capsys.readouterr()
    assert err == f"{HARMLESS}\nWarning: {HARMLESS}\n"
    lines = out.split("\n")
    assert lines[0] == HARMLESS
    assert lines[1] == "\x1b[1mbold\x1b[0m"
    assert "\x1b]" not in out
    assert "\r" not in out
    print_json({EVIL: EVIL, "nan": float("nan"), "list": [float("inf"), 1.5]})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {EVIL: EVIL, "nan": None, "list": [None, 1.5]}


def test_rich_is_given_no_markup_and_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = RichReporter()
    reporter.console._force_terminal = True
    reporter.info(EVIL)
    reporter.warn(EVIL)
    with reporter.progress(EVIL, 10, unit=EVIL) as progress:
        progress.advance(5, note=EVIL)
        reporter._bars.refresh()  # type: ignore[union-attr]
    err = capsys.readouterr().err
    assert "[red]:smile:" in err
    for forbidden in ("\x1b]", "\x07", "\u202e", "\x9b", "\nError: forged", "\udcff"):
        assert forbidden not in err


def test_what_libraries_print_is_made_visible_too(capsys: pytest.CaptureFixture[str]) -> None:
    restore = guard()
    try:
        print("two\nlines\tof \x1b[31m text", file=sys.stderr)
        print("\rbar  50%", end="", file=sys.stderr)
        sys.stderr.writelines(["\x07", "\n"])
        assert not hasattr(sys.stdout, "buffer"), "no way round"
    finally:
        restore()
    assert capsys.readouterr().err == "two\nlines\tof \\x1b[31m text\n\rbar  50%\\x07\n"


def test_evil_words_of_users(cli: Cli) -> None:
    """One line is said for an error, whoever says it; the forged one is part of it."""
    for words in (("eval", f"--{EVIL}"), (EVIL,), ("eval", "--precision", EVIL), ("gen-mask", EVIL)):
        outcome = cli(*words)
        assert outcome.code == 2
        assert [line[:6] for line in outcome.err.splitlines()].count("Error:") == 1
        assert "\x1b" not in outcome.err
    evil = EVIL.replace("\udcff", "")
    assert HARMLESS.replace("\\udcff", "") in the_error(cli("gen-mask", "--attn-map", evil))


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 1, "stdout"),
        (">/dev/full", 1, "stdout (No space left on device)"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">&- 2>&-", 1, ""),
        (">/dev/full 2>/dev/full", 1, ""),
        ("<&-", 0, ""),
        ("<&- >&- 2>&-", 1, ""),
        ("--json >/dev/full", 1, "stdout (No space left on device)"),
    ],
)
def test_closed_and_full_streams(shell: Shell, tmp_path: Path, redirection: str, code: int, said: str) -> None:
    """The file is written in any case; an unseen result is told by the exit code."""
    done = shell(f"{GEN_MASK} {redirection}")
    assert done.returncode == code
    assert (tmp_path / "m.safetensors").stat().st_size > 1000
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert ("Error: " in done.stderr) == (said != "")
    if code == 0 and "2>" in redirection:
        assert done.stdout == "m.safetensors\n", "nothing else went there instead"


@pytest.mark.parametrize("words", ["--help", "--version", "eval --help"])
def test_help_that_cannot_be_shown(shell: Shell, words: str) -> None:
    done = shell(f"{words} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Can't write to stdout (No space left on device)")
    assert len(done.stderr.splitlines()) == 1
    assert shell(f"{words} >/dev/full", LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").returncode == 1


def test_a_reader_that_leaves_ends_no_work(shell: Shell, tmp_path: Path) -> None:
    done = shell(f"{GEN_MASK} 2>&1 | true")
    assert (done.returncode, done.stderr) == (1, "")
    assert (tmp_path / "m.safetensors").exists()
    done = shell(f"{GEN_MASK} 2> >(true)")
    assert (done.returncode, done.stdout) == (0, "m.safetensors\n")


@pytest.mark.slow
def test_a_training_goes_on_without_a_reader(shell: Shell, tmp_path: Path) -> None:
    """Its last line has nowhere to go, which the exit code tells; its state is whole."""
    model = (
        "--model vit_tiny_patch16_224 --img-size 32 --model-kwargs patch_size=8 embed_dim=24 depth=2 num_heads=3"
    )
    words = f"finetune-dense {model} --dataset digits --max-steps 2 --epochs 2 --output-dir run --workers 0"
    done = shell(f"{words} 2>&1 | head -1")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "run/state.safetensors").exists()
    assert (tmp_path / "run/best.safetensors").exists()
    done = shell(f"{words} --overwrite 2> >(true)")
    assert done.returncode == 0
    assert done.stdout.startswith("* Acc@1")


def test_a_path_arrives_byte_for_byte(shell: Shell, tmp_path: Path) -> None:
    """``$(vitcod gen-mask ...)`` works with any name and any encoding."""
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in ({}, {"PYTHONIOENCODING": "ascii"}, ascii_only):
        line = GEN_MASK.replace("m.safetensors", r"$'\e[31m\nä:smile:'")
        done = shell(f"{line} | od -An -c | tr -d ' \\n'", **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout == r"033[31m\n303244:smile:\n"
    assert b"\x1b[31m\n\xc3\xa4:smile:" in os.listdir(os.fsencode(tmp_path))


def test_a_path_on_a_terminal_is_shown(make_map: MakeMap, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", make_map())
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "vitcod_cli", *GEN_MASK.split()[:-1], "\x1b[31m[red]:smile:"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    assert shown.endswith(b"\\x1b[31m[red]:smile:\r\n")
    assert b"\x1b[31m" not in shown


def test_what_libraries_print_does_not_spoil_the_result(make_map: MakeMap, tmp_path: Path) -> None:
    """Python's print, and what C++ writes to the descriptor, in this process and in those it starts."""
    np.save(tmp_path / "map.npy", make_map())
    code = f"""
import os, sys, subprocess
import vitcod_cli.steps.mask as step
read = step.read_attention_map
def noisy(*words):
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run(["echo", "echoed"])
    return read(*words)
step.read_attention_map = noisy
from vitcod_cli.__main__ import main
sys.argv[1:] = {[*GEN_MASK.split(), "--json"]!r}
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "m.safetensors"
    for word in ("printed", "written", "echoed"):
        assert f"{word}\n" in done.stderr


def test_talk_is_dropped_and_comes_again(tmp_path: Path) -> None:
    """A log on a full disk: what could not be written is not stuck in a buffer."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        talk = Talk(full)
        talk.write("x" * 100_000)
        talk.flush()
        print("more", file=talk)
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        Talk(log).write("ä")
    assert (tmp_path / "log").read_text() == "\\xe4"


def test_a_path_goes_into_memory_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_path(os.fsdecode(b"\xff"))
    assert capsys.readouterr().out == "\\udcff\n"
