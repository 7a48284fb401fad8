"""Other ways to write our options: underscores, other tools' names, several values behind one option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args, get_origin

from vitcod_cli.cli.coerce import as_type, bare
from vitcod_cli.settings import Option


def normalizer(options: Iterable[Option]) -> Callable[[str], str]:
    """The ``token_normalize_func`` of a command: ``info_cut`` -> ``info-cut``, aliases -> our own names.

    Typer calls it with option names, without their dashes, and with the choices of options, which stay.
    """
    names: dict[str, str] = {}
    for option in options:
        own = [flag.removeprefix("--") for flag in option.info.flag.split("/")]
        names |= {flag: flag for flag in own}
        if bare(option.type) is bool:
            names[f"no-{own[0]}"] = f"no-{own[0]}"
        names |= {alias.removeprefix("--"): own[0] for alias in option.info.aliases}

    def normalize(token: str) -> str:
        return names.get(token.replace("_", "-"), token)

    return normalize


def several_values(
    arguments: Sequence[str], options: Iterable[Option], normalize: Callable[[str], str]
) -> list[str]:
    """``--model-kwargs a=1 b=2`` as one option each: ``--model-kwargs a=1 --model-kwargs b=2``.

    A further argument is a value of the option when it could be one: ``key=value`` for an option that
    takes such, a number for one that takes numbers. So a file name behind it stays an argument, unless the
    command takes none.
    ``--resume auto``, as timm has it, becomes ``--resume``.
    """
    options = list(options)
    by_flag = {option.info.flag.split("/")[0]: option for option in options if not option.info.positional}
    no_arguments = len(by_flag) == len(options)
    result: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*result, argument, *rest]
        result.append(argument)
        name, equals, _ = argument.partition("=")
        if not name.startswith("--"):
            continue
        option = by_flag.get("--" + normalize(name.removeprefix("--")))
        if option is None:
            continue
        if option.name == "resume" and rest[:1] == ["auto"]:
            rest.pop(0)
        for _ in range(min(_arity(option) - len(equals), len(rest))):
            result.append(rest.pop(0))
        words = no_arguments and str(option.info.metavar).endswith("...")
        while _is_list(option) and rest and _is_value(option, rest[0], words=words):
            result += [name, rest.pop(0)]
    return result


def option_without_value(
    arguments: Sequence[str], options: Iterable[Option], normalize: Callable[[str], str]
) -> str | None:
    """The first option whose value is another option, so that its own was forgotten: ``--output --overwrite``.

    A value that really looks so can be given as ``--output=--overwrite``.
    """
    by_flag: dict[str, Option] = {}
    for option in options:
        flags = option.info.flag.split("/")
        by_flag |= dict.fromkeys([*flags, f"--no-{flags[0].removeprefix('--')}"], option)
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return None
        known = by_flag.get("--" + normalize(argument.removeprefix("--"))) if argument.startswith("--") else None
        for _ in range(0 if known is None else min(_arity(known), len(rest))):
            value = rest.pop(0)
            if value in ("-h", "--help", "--config"):
                return argument
            if value.startswith("--") and "--" + normalize(value.removeprefix("--")) in by_flag:
                return argument
    return None


def _is_list(option: Option) -> bool:
    return get_origin(bare(option.type)) is list


def _arity(option: Option) -> int:
    """How many values the option takes at a time."""
    hint = bare(option.type)
    if hint is bool:
        return 0
    return len(get_args(hint)) if get_origin(hint) is tuple else 1


def _is_value(option: Option, argument: str, *, words: bool) -> bool:
    """``words``: whether it may be any word that doesn't look like an option."""
    item: Any = get_args(bare(option.type))[0]
    if item is str and words:
        return not argument.startswith("-")
    if item is str:
        key, equals, _ = argument.partition("=")
        return bool(equals) and key.isidentifier()
    try:
        as_type(argument, item)
    except ValueError:
        return False
    return True
