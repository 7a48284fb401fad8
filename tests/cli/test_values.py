"""Every option of every command against values that nobody means: one sentence, or a value to compute with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest

from vitcod_cli.cli.app import COMMANDS, _load
from vitcod_cli.cli.coerce import as_type, bare
from vitcod_cli.cli.options import options_type
from vitcod_cli.errors import VitcodError
from vitcod_cli.settings import Option, Settings, options_of

NASTY = [
    "",
    " ",
    "-1",
    "0",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "1e-320",
    "1e300",
    "1" + "0" * 30,
    "9" * 6000,
]
NASTY += ["\N{SNOWMAN}", "x" * 100_000, "\n", "a\0b", "\udcff", "1.5", "[1]", "None", "true", "1e-3"]
NEEDED = {
    "checkpoint": "c",
    "init_from": "c",
    "output_dir": "o",
    "output": "o.pt2",
    "attn_map": "a",
    "mask": "m",
    "source": "s",
}
NEEDED |= {"sources": ["s"], "files": ["f"], "runs": ["r"], "repo": "me/r"}
WITH = {"std_coef": {"method": "std"}, "ratio": {"method": "ratio"}, "seed": {"method": "random"}}
"""What an option of gen-mask goes with."""

ZERO_IS_SENSIBLE = {
    # nothing of it, said so in the help
    *(
        "calibrate_steps",
        "calibrate_joint_steps",
        "align_steps",
        "importance_images",
        "epochs",
        "warmup_epochs",
        "cooldown_epochs",
        "workers",
    ),
    *("max_bad_images", "skip_nonfinite", "warmup", "seconds", "save_every", "num_prefix_tokens", "num_classes"),
    *("color_jitter", "hflip", "reprob", "smoothing", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob"),
    *("drop_path", "recon_weight", "distill_alpha", "model_ema_decay", "momentum", "weight_decay"),
    # a number like others
    *("seed", "min_lr", "warmup_lr", "via", "sparsity", "max_drop", "info_cut", "ratio", "std_coef"),
}
NEGATIVE_IS_SENSIBLE = {"std_coef"}


def settings_classes() -> dict[str, type[Settings]]:
    """The options of each command."""
    from importlib import import_module

    classes = {}
    for name, entry in COMMANDS.items():
        module, function = entry.function.split(".")
        classes[name] = options_type(getattr(import_module(f"vitcod_cli.commands.{module}"), function))
    return classes


CLASSES = settings_classes()
CASES = sorted((command, name) for command, cls in CLASSES.items() for name in options_of(cls))


def build(cls: type[Settings], **values: Any) -> Any:
    needed = {name: value for name, value in NEEDED.items() if name in options_of(cls)}
    (name,) = values
    method = WITH.get(name, {}) if "method" in options_of(cls) else {}
    return cls.from_flat({**needed, **method, **values})


def read(option: Option, raw: str) -> Any:
    """``raw`` as the command line or a file would give it to the option."""
    hint = bare(option.type)
    if get_origin(hint) is tuple:
        return as_type([raw] * len(get_args(hint)), option.type)
    return as_type([raw] if get_origin(hint) is list else raw, option.type)


def outcomes(cls: type[Settings], option: Option) -> Iterator[tuple[str, Any]]:
    """What becomes of each nasty value: an error's text, or the value that is taken."""
    for raw in NASTY:
        try:
            value = read(option, raw)
        except ValueError as error:
            yield raw, error
            continue
        try:
            yield raw, build(cls, **{option.name: value}).flat()[option.name]
        except VitcodError as error:
            yield raw, error


def items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_nasty_values(command: str, name: str) -> None:
    option = options_of(CLASSES[command])[name]
    for raw, outcome in outcomes(CLASSES[command], option):
        if isinstance(outcome, ValueError):
            assert str(outcome).startswith("must be")
            assert len(str(outcome)) < 300
        elif isinstance(outcome, VitcodError):
            text = str(outcome)
            assert "--" in text or option.info.flag in text
            assert "\0" not in text
            assert len(text) < 500, text[:500]
        else:
            for item in items(outcome):
                check_taken(option, raw, item)


def check_taken(option: Option, raw: str, item: Any) -> None:
    if isinstance(item, str):
        assert item.strip() or option.info.blank or item == option.default
        assert len(item) <= 4096
        assert "\0" not in item
        item.encode()
    elif isinstance(item, (int, float)) and not isinstance(item, bool):
        assert math.isfinite(item)
        assert abs(item) <= (10**12 if option.name == "batch_size" else 2**32)
        assert item == 0 or abs(item) > 1e-101
        assert item != 0 or option.name in ZERO_IS_SENSIBLE, "0 is taken"
        assert item >= 0 or option.name in NEGATIVE_IS_SENSIBLE, "a negative number is taken"


def test_zero_and_negative_numbers_that_mean_something_are_taken() -> None:
    taken = set()
    for cls in CLASSES.values():
        for name, option in options_of(cls).items():
            if bare(option.type) in (int, float, list[int], list[float]):
                for raw, outcome in outcomes(cls, option):
                    if raw in ("0", "-1") and not isinstance(outcome, Exception):
                        taken.add((name, raw))
    assert {name for name, raw in taken if raw == "-1"} == NEGATIVE_IS_SENSIBLE
    assert {name for name, raw in taken if raw == "0"} == ZERO_IS_SENSIBLE


def test_a_choice_is_listed() -> None:
    for cls in CLASSES.values():
        for option in options_of(cls).values():
            if get_origin(bare(option.type)) is Literal:
                with pytest.raises(ValueError, match="must be one of"):
                    read(option, "foo")


def test_every_command_loads() -> None:
    assert {_load(name).name for name in COMMANDS} == set(COMMANDS)
