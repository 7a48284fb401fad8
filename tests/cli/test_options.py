"""Settings classes to options, option values to settings, and a file of them in between."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from vitcod_cli.cli.app import typer_app
from vitcod_cli.cli.coerce import as_type
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import ABOUT, Settings, options_of, required, setting


@dataclass(frozen=True, kw_only=True)
class Shape(Settings, panel="Model"):
    """One field of each type."""

    number: int = setting(3, "A number.", minimum=1, panel="Data")
    share: float | None = setting(None, "A share.", minimum=0, maximum=1)
    kind: Literal["plain", "two_words"] = setting("plain", "A kind.")
    names: list[str] = setting([], "Names.")
    pair: tuple[float, float] = setting((0.5, 1.0), "A pair.")
    quick: bool = setting(True, "Whether.")
    no_noise: bool = setting(False, "Whether not.")
    text: str | None = setting(None, "Text.")
    hidden: int = 7


@dataclass(frozen=True, kw_only=True)
class Other(Settings):
    """A second group."""

    seed: int = setting(0, "A seed.")


@dataclass(frozen=True, kw_only=True)
class Clashing(Settings):
    """A field that Shape has too."""

    number: int = setting(1, "Another number.")


@dataclass(frozen=True, kw_only=True)
class Both(Settings):
    """The options of a command: groups, and one of its own."""

    shape: Shape = field(default_factory=Shape)
    other: Other = field(default_factory=Other)
    plain: str = setting("x", "Plain.", aliases=("--simple",))


@dataclass(frozen=True, kw_only=True)
class Needing(Settings):
    """An option without a default, and an argument."""

    file: str = required("A file.", "name one.")
    sources: list[str] = required("Sources.", "name some.", positional=True)
    kwargs: list[str] = setting([], "Arguments.")
    sizes: list[int] = setting([], "Sizes.")
    resume: bool = setting(False, "Go on.")


Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call() -> Call:
    """Call a command of Shape, Other and a plain option with words; returns what it was passed."""

    def run(*words: str) -> dict[str, Any]:
        passed: dict[str, Any] = {}

        def command(options: Both) -> None:
            """Do it."""
            passed.update(vars(options))

        result = CliRunner().invoke(typer_app("do", command), list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0 or not passed, result.output
        return {**passed, "code": result.exit_code, "output": result.output}

    return run


def test_defaults(call: Call) -> None:
    passed = call()
    assert passed["shape"] == Shape()
    assert passed["other"] == Other()
    assert passed["plain"] == "x"


def test_every_type_is_read(call: Call) -> None:
    words = (
        "--number 5 --share 0.25 --kind two_words --names a --names=b --pair 2 3 --no-quick --no-noise --text 1"
    )
    passed = call(*words.split(), "--seed", "9", "--plain", "y")
    assert passed["shape"] == Shape(
        number=5,
        share=0.25,
        kind="two_words",
        names=["a", "b"],
        pair=(2.0, 3.0),
        quick=False,
        no_noise=True,
        text="1",
    )
    assert passed["other"].seed == 9
    assert passed["plain"] == "y"


@pytest.mark.parametrize(
    "words",
    ["--number x", "--number 1.5", "--share half", "--kind two-words", "--pair 1", "--hidden 1", "--names"],
)
def test_wrong_usage_exits_2(call: Call, words: str) -> None:
    assert call(*words.split())["code"] == 2


def test_out_of_range_is_the_users_mistake(call: Call) -> None:
    with pytest.raises(VitcodError, match=r"--number must be at least 1, not 0\."):
        call("--number", "0")
    with pytest.raises(VitcodError, match=r"--share must be between 0 and 1, not nan\."):
        call("--share", "nan")


def test_help_has_panels_ranges_and_defaults(call: Call) -> None:
    lines = call("--help-all")["output"].splitlines()
    assert lines.index("Data:") < lines.index("Options:")
    text = " ".join(" ".join(lines).split())
    assert re.search(r"--number (<int>|INTEGER) A number\. \[default: 3\]", text), "the type as Typer has it"
    assert "A share. (0 to 1)" in text
    assert "--quick / --no-quick Whether. [default: quick]" in text
    assert "--hidden" not in text


def test_the_same_name_twice_is_a_defect() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Twice(Both):
        """``number`` in two groups."""

        clashing: Clashing = field(default_factory=Clashing)

    with pytest.raises(TypeError, match="number"):
        options_of(Twice)


def call_needing(*words: str) -> tuple[int, Any, str]:
    """Exit code, options or error, and output of a command of Needing."""
    passed: list[Any] = []

    def command(options: Needing) -> None:
        """Do it."""
        passed.append(options)

    result = CliRunner().invoke(typer_app("do", command), list(words))
    return result.exit_code, passed[0] if passed else result.exception, result.output


def test_a_required_option() -> None:
    code, options, _ = call_needing("--file", "f", "a", "b")
    assert (code, options) == (0, Needing(file="f", sources=["a", "b"]))
    _, error, _ = call_needing("a")
    assert isinstance(error, VitcodError)
    assert str(error) == "--file is needed: name one."
    assert "A file. [required]" in " ".join(call_needing("--help")[2].split())
    assert call_needing("--file", "f")[0] == 2, "an argument is Typer's to ask for"


def test_several_values_leave_arguments_alone() -> None:
    expected = Needing(file="f", sources=["a.pth"], kwargs=["depth=2", "x=1"], sizes=[1, 32])
    assert call_needing("--file=f", "--kwargs", "depth=2", "x=1", "--sizes", "1", "32", "a.pth")[1] == expected
    assert call_needing("--sizes", "1", "32", "--file", "f", "--kwargs", "depth=2", "x=1", "a.pth")[1] == expected


def test_aliases_and_underscores(call: Call) -> None:
    assert call("--simple", "z")["plain"] == "z"
    assert call("--no_quick")["shape"].quick is False
    assert call("--no_noise")["shape"].no_noise is True
    assert "--simple" not in call("--help-all")["output"]


def test_arguments_give_the_settings_back() -> None:
    options = Both(shape=Shape(number=4, names=["a", "b"], quick=False, no_noise=True, pair=(1, 2)), plain="y z")
    words = options.arguments()
    assert words[:2] == ["--plain", "y z"]
    assert "--no-quick" in words
    passed: list[Both] = []

    def command(options: Both) -> None:
        """Do it."""
        passed.append(options)

    CliRunner().invoke(typer_app("do", command), words)
    assert passed == [options]


def test_command_line_goes_before_file_before_default(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    # 1e-1 is a string to YAML 1.1; dashes are as good as underscores; null is "not given".
    config.write_text(
        "number: 5\nshare: 1e-1\nkind: two_words\nno-noise: true\nnames: [a]\npair: [1, 2]\ntext: null\n"
    )
    passed = call("--config", str(config), "--number", "6", "--kind", "plain", "--names", "b")["shape"]
    assert passed == Shape(number=6, share=0.1, kind="plain", names=["b"], pair=(1.0, 2.0), no_noise=True)
    assert call("--number", "6", "--config", str(config))["shape"].number == 6, "wherever it stands"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("numbr: 1", "numbr is not an option of .*did you mean number"),
        ("zzz: 1", "zzz is not an option of .*--help-all lists"),
        ("config: x.yaml", "config is not an option"),
        ("number: many", "number must be a whole number, not 'many'"),
        ("number: 1.5", "number must be a whole number"),
        ("number: true", "number must be a whole number, not True"),
        ("share: [1]", "share must be a number"),
        ("quick: 1", "quick must be true or false, not '1'"),
        ("quick: 'yes'", "quick must be true or false"),
        ("kind: odd", "kind must be one of plain, two_words, not 'odd'"),
        ("names: a", "names must be a list, not 'a'"),
        ("pair: [1]", "pair must be 2 values"),
        ("text: [a]", "text must be text"),
        ("number: 0", "--number must be at least 1, not 0"),
        ("- number", "must hold lines like 'epochs: 10', not a list"),
        ("a: b: c", r"not valid YAML \(line 1\)"),
        ("text: !!python/object/apply:os.system [ls]", r"no plain value .* in line 1"),
        ("text: !!timestamp 2024-99-99", "no plain value"),
        ("text: !!binary x", "no plain value"),
        ("quick: !!bool maybe", "no plain value"),
        ("number: !!int " + "9" * 5000, "no plain value"),
        ("text: {a: 1}", "no plain value"),
        ("text: [[a]]", "no plain value"),
        ("names: &a [*a]", "no plain value"),
        ("number: 2\nnumber: 3", r"number is given twice \(lines 1 and 2\)"),
        ("no-noise: true\n\nno_noise: true", r"no_noise is given twice \(lines 1 and 3\)"),
        ("about: 1\nabout: 2", "about is given twice"),
        ("number: 1\n? \n: 2", r"an empty key \(line 2\)"),
        ("'': 2", r"an empty key \(line 1\)"),
        ("~: 1", "'~' is not an option"),
        ("null: 1", "null is not an option"),
        ("[a]: 1", r"a key that is no name \(line 1\)"),
        ("? {a: b}\n: 1", "a key that is no name"),
        ("1: 2", "'1' is not an option"),
        ('"a\\nb": 1', "is not an option"),
        ("<<: {number: 1}", "no plain value|'<<' is not an option"),
        ("number: 1\n---\nnumber: 2", "not valid YAML"),
        ("number:\t[\n\t1", "not valid YAML"),
        ("text: *nowhere", "not valid YAML"),
        ("number: 0x10", "number must be a whole number, not '0x10'"),
        ("number: 1:30", "number must be a whole number, not '1:30'"),
        ("number: " + "9" * 100_000, "number must be a whole number, not '999"),
        (
            "number: 1" + "0" * 400,
            r"--number must be .* at most|between 1 and 2147483647, not a number of about 39\d",
        ),
        ("share: 1" + "0" * 400, "--share must be between 0 and 1, not inf"),
        ("share: .inf", "share must be a number, not '.inf'"),
        ("share: nan", "--share must be between 0 and 1, not nan"),
        ("share: 1e400", "--share must be between 0 and 1, not inf"),
        ("seed: -1e400", "seed must be a whole number"),
        ("text: ''", "--text is empty"),
        ('text: "a\\0b"', "--text .* holds a NUL"),
        ("plain: " + "[" * 5000, "nested too deeply"),
        ("{" * 5000, "nested too deeply"),
        ("just text", "must hold lines like .* not a single value"),
        ("text: a\0b", "not valid YAML"),
    ],
)
def test_a_file_that_makes_no_sense(call: Call, tmp_path: Path, content: str, message: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(content)
    with pytest.raises(VitcodError, match=message):
        call("--config", str(config))


def test_a_file_that_cannot_be_read(call: Call, tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(VitcodError, match=rf"^--config .*{message}"):
            call("--config", name if name.startswith("/dev") else str(tmp_path / name))

    refused("missing.yaml", "does not exist")
    refused("", "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused("pipe", "is not a regular file")
    refused("/dev/zero", "is not a regular file")
    for number, content in enumerate([b"\xff\xfe\x00", "number: 2".encode("utf-16"), "text: ä".encode("latin-1")]):
        (tmp_path / f"{number}.yaml").write_bytes(content)
        refused(f"{number}.yaml", "is not a UTF-8 text file")
    with open(tmp_path / "large.yaml", "wb") as file:
        file.truncate(2**30)
    refused("large.yaml", "is larger than 256 KiB")


def test_a_file_means_what_it_says(call: Call, tmp_path: Path) -> None:
    """Numbers as on the command line: YAML 1.1 would make 8 of 010, 1.1 of 1.10 and a date of 2024-01-01."""
    config = tmp_path / "c.yaml"
    for text in ("010", "1.10", "2024-01-01", "1_0", "0x10", "1:30", "=", ".inf", "<<"):
        config.write_text(f"text: {text}\n")
        assert call("--config", str(config))["shape"].text == text
    config.write_text("\ufeffnumber: 010\r\nshare: 5e-1\r\nquick: off\r\nnames: &a [x, &b y]\r\ntext: *b\r\n")
    expected = Shape(number=10, share=0.5, quick=False, names=["x", "y"], text="y")
    assert call("--config", str(config))["shape"] == expected


def test_a_small_file_that_would_be_large(call: Call, tmp_path: Path) -> None:
    """References to references: a billion laughs."""
    config = tmp_path / "c.yaml"
    lines = ["a: &a [lol, lol]", *(f"{n}: &{n} [{', '.join(['*' + p] * 9)}]" for p, n in pairwise("abcdefghijkl"))]
    config.write_text("about: {" + ", ".join(lines) + "}\ntext: *l\n")
    with pytest.raises(VitcodError, match="no plain value"):
        call("--config", str(config))


def test_two_files(call: Call, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("number: 2")
    with pytest.raises(VitcodError, match="--config is given twice"):
        call("--config", str(tmp_path / "a"), f"--config={tmp_path / 'b'}")


def test_what_a_run_writes_can_be_given_back(call: Call, tmp_path: Path) -> None:
    shape = Shape(number=4, share=1e-05, names=["a=1", "b=2"], pair=(0.1, 0.2), quick=False, text="x: y")
    config = Both(shape=shape, other=Other(seed=3), plain="z").record({"command": "x"})
    assert config[ABOUT] == {"command": "x"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    passed = call("--config", str(path))
    assert passed["shape"] == shape
    assert passed["other"] == Other(seed=3)
    assert passed["plain"] == "z"
    assert not {"resume", "overwrite"} & set(Needing(file="f", sources=[]).record({}))


def test_flat_values_give_the_settings_back() -> None:
    options = Both(shape=Shape(number=4, names=["a"]), other=Other(seed=3), plain="z")
    assert Both.from_flat(options.flat()) == options
    assert Both.from_flat({}) == Both()
    with pytest.raises(VitcodError, match=r"^Both has no option called numbr\.$"):
        Both.from_flat({"numbr": 4})


def test_as_type_takes_no_true_for_a_number() -> None:
    with pytest.raises(ValueError, match="must be a number, not True"):
        as_type(True, float)
    assert as_type("inf", float) == float("inf")
    assert as_type(None, int | None) is None


def test_every_command_can_be_built() -> None:
    from vitcod_cli.cli.app import app

    group = get_command(app)
    assert all(group.get_command(None, name).name == name for name in group.list_commands(None))
